package inference

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Headers that this suite's picker understands; tools/conformance/picker says what they do.
const (
	selectionHeader = "Test-Epp-Endpoint-Selection"
	refusalHeader   = "Test-Picker-Refusal"
	// The content type of the refusal.
	refusalTypeHeader = "Test-Picker-Refusal-Type"
	momentHeader      = "Test-Picker-Moment"
	servedHeader      = "X-Conformance-Test-Served-Endpoint"
)

// answerTimeout bounds one request, its streams included.
const answerTimeout = 60 * time.Second

// ask is a request to a Gateway.
type ask struct {
	gateway string
	host    string
	method  string
	path    string
	header  map[string]string
	body    io.Reader
	trailer http.Header
	// h2c speaks HTTP/2 without TLS to the Gateway.
	h2c bool
}

// answer is what came back, read to its end.
type answer struct {
	status  int
	header  http.Header
	trailer http.Header
	body    []byte
}

// echo is what the model servers say of themselves and of the request.
type echo struct {
	Path       string      `json:"path"`
	Proto      string      `json:"proto"`
	Headers    http.Header `json:"headers"`
	Trailers   http.Header `json:"trailers"`
	BodyBytes  int         `json:"bodyBytes"`
	BodySHA256 string      `json:"bodySha256"`
	Pod        string      `json:"pod"`
	Port       string      `json:"httpPort"`
}

// to is a GET of the first Gateway's route for this host.
func to(host string) ask {
	return ask{gateway: First, host: host + ".example.com", method: http.MethodGet, path: "/"}
}

// picked asks the picker for these endpoints, in order.
func (a ask) picked(endpoints ...string) ask {
	return a.with(selectionHeader, strings.Join(endpoints, ","))
}

func (a ask) with(name, value string) ask {
	header := maps.Clone(a.header)
	if header == nil {
		header = map[string]string{}
	}
	header[name] = value
	a.header = header
	return a
}

func (a ask) at(path string) ask {
	a.path = path
	return a
}

// open sends the request and returns the answer with its body still to be read.
func (s *Suite) open(ctx context.Context, a ask) (*http.Response, error) {
	url := "http://" + s.addresses[a.gateway] + a.path
	request, err := http.NewRequestWithContext(ctx, a.method, url, a.body)
	if err != nil {
		return nil, err
	}
	request.Host = a.host
	request.Trailer = a.trailer
	for name, value := range a.header {
		request.Header.Set(name, value)
	}
	protocols := &http.Protocols{}
	protocols.SetHTTP1(!a.h2c)
	protocols.SetUnencryptedHTTP2(a.h2c)
	// A connection for each request: none can be a leftover of what was configured before.
	transport := &http.Transport{Protocols: protocols, DisableKeepAlives: true, DisableCompression: true}
	client := &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return client.Do(request)
}

// send sends the request and reads the answer to its end.
func (s *Suite) send(a ask) (answer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), answerTimeout)
	defer cancel()
	response, err := s.open(ctx, a)
	if err != nil {
		return answer{}, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return answer{}, fmt.Errorf("the answer (%d) broke off after %d bytes: %w", response.StatusCode, len(body), err)
	}
	return answer{response.StatusCode, response.Header, response.Trailer, body}, nil
}

// echoed sends a request that must be answered by a model server.
func (s *Suite) echoed(a ask) (echo, answer, error) {
	answer, err := s.send(a)
	if err != nil {
		return echo{}, answer, err
	}
	if answer.status != http.StatusOK {
		return echo{}, answer, fmt.Errorf("%s %s%s: status %d, %s", a.method, a.host, a.path, answer.status, clip(answer.body))
	}
	var said echo
	if err := json.Unmarshal(answer.body, &said); err != nil {
		return echo{}, answer, fmt.Errorf("the answer is not that of a model server: %w: %s", err, clip(answer.body))
	}
	return said, answer, nil
}

// servedBy waits until requests are answered by pods of this app only.
func (s *Suite) servedBy(t *testing.T, a ask, app string) {
	t.Helper()
	s.eventually(t, func() error {
		said, _, err := s.echoed(a)
		if err != nil {
			return err
		}
		if !strings.HasPrefix(said.Pod, app+"-") {
			return fmt.Errorf("served by %s, want a pod of %s", said.Pod, app)
		}
		return nil
	})
}

// refused waits until requests get one of these statuses.
func (s *Suite) refused(t *testing.T, a ask, wanted func(status int) bool) {
	t.Helper()
	s.eventually(t, func() error {
		answer, err := s.send(a)
		if err != nil {
			return err
		}
		if !wanted(answer.status) {
			return fmt.Errorf("status %d, %s", answer.status, clip(answer.body))
		}
		return nil
	})
}

// event reads the next event of a stream.
func event(t *testing.T, lines *bufio.Reader) string {
	t.Helper()
	for {
		line, err := lines.ReadString('\n')
		require.NoError(t, err, "the stream ended before the next event")
		if data, ok := strings.CutPrefix(strings.TrimSpace(line), "data: "); ok {
			return data
		}
	}
}

func clip(body []byte) string {
	const most = 300
	if len(body) > most {
		return fmt.Sprintf("%q...", body[:most])
	}
	return fmt.Sprintf("%q", body)
}
