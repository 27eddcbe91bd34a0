// Command cel records what the CEL library of Kubernetes' scheduler makes of device selectors, costs
// included, which a control plane does not tell.
//
// It reads a recording of the crate k8s-cel (devices, and rows of expression and device) from standard
// input and writes it anew to standard output. Rows without an answer are fine:
//
//	cd tools/cel && go run . <../../crates/k8s-cel/tests/library.json >/tmp/library.json
//
// record.py asks a real control plane for the same rows.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"os"

	resourceapi "k8s.io/api/resource/v1"
	"k8s.io/apiserver/pkg/cel/environment"
	dracel "k8s.io/dynamic-resource-allocation/cel"
)

// A recording is devices by name, as in a ResourceSlice but for their driver, and what is asked of them.
type recording struct {
	// Devices are given back as they were read.
	Devices json.RawMessage `json:"devices"`
	Rows    []row           `json:"rows"`
}

type row struct {
	Expression string `json:"expression"`
	Device     string `json:"device"`
	// Outcome is true, false, compile, runtime or expensive.
	Outcome string `json:"outcome"`
	Error   string `json:"error,omitempty"`
	// Estimated is what it may cost; Actual is what it has cost.
	Estimated *uint64 `json:"estimated,omitempty"`
	Actual    *uint64 `json:"actual,omitempty"`
}

func main() {
	log.SetFlags(0)
	if err := record(os.Stdin, os.Stdout); err != nil {
		log.Fatal(err)
	}
}

func record(from io.Reader, to io.Writer) error {
	var given recording
	if err := json.NewDecoder(from).Decode(&given); err != nil {
		return fmt.Errorf("the recording: %w", err)
	}
	devices, err := devices(given.Devices)
	if err != nil {
		return err
	}
	compiler := dracel.GetCompiler(dracel.Features{EnableConsumableCapacity: true})
	out := bufio.NewWriter(to)
	fmt.Fprintf(out, "{\n \"devices\": %s,\n \"rows\": [\n", given.Devices)
	for at, row := range given.Rows {
		device, known := devices[row.Device]
		if !known {
			return fmt.Errorf("row %d: no device %q", at, row.Device)
		}
		if at > 0 {
			fmt.Fprint(out, ",\n")
		}
		line, err := text(ask(compiler.CompileCELExpression, row, device))
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "  %s", line)
	}
	fmt.Fprint(out, "\n ]\n}\n")
	return out.Flush()
}

func devices(text json.RawMessage) (map[string]dracel.Device, error) {
	type device struct {
		Driver string `json:"driver"`
		resourceapi.Device
	}
	var read map[string]device
	if err := json.Unmarshal(text, &read); err != nil {
		return nil, fmt.Errorf("the devices: %w", err)
	}
	all := map[string]dracel.Device{}
	for name, device := range read {
		all[name] = dracel.Device{
			Driver:                   device.Driver,
			AllowMultipleAllocations: device.AllowMultipleAllocations,
			Attributes:               device.Attributes,
			Capacity:                 device.Capacity,
		}
	}
	return all, nil
}

// text is a row in one line, with its expression as it is.
func text(row row) ([]byte, error) {
	var line bytes.Buffer
	encoder := json.NewEncoder(&line)
	encoder.SetEscapeHTML(false)
	err := encoder.Encode(row)
	return bytes.TrimRight(line.Bytes(), "\n"), err
}

// ask answers a row. Of its fields only expression and device are read.
func ask(compile func(string, dracel.Options) dracel.CompilationResult, asked row, device dracel.Device) row {
	answer := row{Expression: asked.Expression, Device: asked.Device}
	kind := environment.NewExpressions
	compiled := compile(asked.Expression, dracel.Options{EnvType: &kind})
	if compiled.Error != nil {
		answer.Outcome, answer.Error = "compile", compiled.Error.Detail
		return answer
	}
	answer.Estimated = &compiled.MaxCost
	matches, details, err := compiled.DeviceMatches(context.Background(), device)
	if details != nil {
		answer.Actual = details.ActualCost()
	}
	switch {
	case compiled.MaxCost > resourceapi.CELSelectorExpressionMaxCost:
		answer.Outcome = "expensive"
	case err != nil:
		answer.Outcome, answer.Error = "runtime", err.Error()
	case matches:
		answer.Outcome = "true"
	default:
		answer.Outcome = "false"
	}
	return answer
}
