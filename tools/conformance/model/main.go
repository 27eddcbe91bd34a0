// Command model stands in for a model server in tests of gateways: it says which pod it is and what
// arrived there, streams events one by one as it is told to, and sends and receives trailers. No model
// is in it.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	bodyBytesMax = 16 << 20
	// gateWait is how long a stream waits for leave to go on.
	gateWait = 20 * time.Second
)

// said is what an answer tells of itself and of the request.
type said struct {
	Path       string      `json:"path"`
	Host       string      `json:"host"`
	Method     string      `json:"method"`
	Proto      string      `json:"proto"`
	Headers    http.Header `json:"headers"`
	Trailers   http.Header `json:"trailers,omitempty"`
	BodyBytes  int         `json:"bodyBytes"`
	BodySHA256 string      `json:"bodySha256"`
	Namespace  string      `json:"namespace"`
	Pod        string      `json:"pod"`
	Port       string      `json:"httpPort"`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	gates := &gates{open: map[string]chan struct{}{}}
	failed := make(chan error)
	for _, spec := range []struct {
		ports string
		h2c   bool
	}{{os.Getenv("PORTS"), false}, {os.Getenv("H2C_PORTS"), true}} {
		for port := range strings.SplitSeq(spec.ports, ",") {
			if port != "" {
				go func() { failed <- serve(port, spec.h2c, gates) }()
			}
		}
	}
	select {
	case err := <-failed:
		log.Fatal(err)
	case <-ctx.Done():
	}
}

func serve(port string, h2c bool, gates *gates) error {
	protocols := &http.Protocols{}
	protocols.SetHTTP1(!h2c)
	protocols.SetUnencryptedHTTP2(h2c)
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) { echo(w, r, port) })
	mux.HandleFunc("/sse", gates.stream)
	mux.HandleFunc("/gate", gates.pass)
	mux.HandleFunc("/bytes", count)
	mux.HandleFunc("/trailers", func(w http.ResponseWriter, r *http.Request) { trailers(w, r, port) })
	server := &http.Server{Handler: mux, Protocols: protocols, ReadHeaderTimeout: time.Minute}
	listener, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return err
	}
	log.Printf("listening on %s, h2c: %t", listener.Addr(), h2c)
	return server.Serve(listener)
}

// read reads the request to its end, so that its trailers are there.
func read(r *http.Request, port string) (said, error) {
	body, err := io.ReadAll(io.LimitReader(r.Body, bodyBytesMax+1))
	if err != nil {
		return said{}, err
	}
	if len(body) > bodyBytesMax {
		return said{}, errors.New("the body is too large for this server")
	}
	digest := sha256.Sum256(body)
	return said{
		Path:       r.URL.RequestURI(),
		Host:       r.Host,
		Method:     r.Method,
		Proto:      r.Proto,
		Headers:    r.Header,
		Trailers:   r.Trailer,
		BodyBytes:  len(body),
		BodySHA256: hex.EncodeToString(digest[:]),
		Namespace:  os.Getenv("NAMESPACE"),
		Pod:        os.Getenv("POD_NAME"),
		Port:       port,
	}, nil
}

func echo(w http.ResponseWriter, r *http.Request, port string) {
	said, err := read(r, port)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	write(w, said)
}

func write(w http.ResponseWriter, said said) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(said); err != nil {
		log.Printf("an answer could not be written: %v", err)
	}
}

// trailers answers with a trailer, after the request's own have arrived.
func trailers(w http.ResponseWriter, r *http.Request, port string) {
	said, err := read(r, port)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Trailer", "X-Model-Trailer")
	write(w, said)
	w.Header().Set("X-Model-Trailer", "from "+said.Pod)
}

// count answers with that many bytes, which repeat every 251.
func count(w http.ResponseWriter, r *http.Request) {
	wanted, err := strconv.Atoi(r.URL.Query().Get("count"))
	if err != nil || wanted < 0 || wanted > bodyBytesMax {
		http.Error(w, "count: a number of bytes, 16 MiB at most", http.StatusBadRequest)
		return
	}
	period := make([]byte, 251)
	for i := range period {
		period[i] = byte(i)
	}
	body := bytes.Repeat(period, wanted/len(period)+1)[:wanted]
	w.Header().Set("Content-Type", "application/octet-stream")
	if _, err := w.Write(body); err != nil {
		log.Printf("bytes could not be written: %v", err)
	}
}

// gates hold streams until a second request lets them go on. So a test can know that an event had
// arrived before the next one was sent, without measuring time.
type gates struct {
	lock sync.Mutex
	open map[string]chan struct{}
}

func (g *gates) of(id string) chan struct{} {
	g.lock.Lock()
	defer g.lock.Unlock()
	gate, ok := g.open[id]
	if !ok {
		gate = make(chan struct{}, 16)
		g.open[id] = gate
	}
	return gate
}

// stream sends `events` events; before each but the first it waits at the gate `id`.
func (g *gates) stream(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	events, err := strconv.Atoi(query.Get("events"))
	if err != nil || events < 1 || events > 1000 || query.Get("id") == "" {
		http.Error(w, "events: 1 to 1000; id: a name for the gate", http.StatusBadRequest)
		return
	}
	gate := g.of(query.Get("id"))
	w.Header().Set("Content-Type", "text/event-stream")
	flusher := http.NewResponseController(w)
	for event := range events {
		if event > 0 {
			select {
			case <-gate:
			case <-r.Context().Done():
				return
			case <-time.After(gateWait):
				return
			}
		}
		if _, err := fmt.Fprintf(w, "data: event %d of %s\n\n", event, os.Getenv("POD_NAME")); err != nil {
			return
		}
		if err := flusher.Flush(); err != nil {
			return
		}
	}
}

// pass lets one stream at the gate go on.
func (g *gates) pass(w http.ResponseWriter, r *http.Request) {
	select {
	case g.of(r.URL.Query().Get("id")) <- struct{}{}:
		w.WriteHeader(http.StatusNoContent)
	default:
		http.Error(w, "nobody waits at this gate", http.StatusConflict)
	}
}
