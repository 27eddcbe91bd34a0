package inference

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"testing"

	"github.com/stretchr/testify/require"
)

// posting makes it a POST of this body; an empty one leaves it as it is.
func (a ask) posting(body string) ask {
	if body != "" {
		a.method = http.MethodPost
		a.body = bytes.NewReader([]byte(body))
		a = a.with("Content-Type", "application/json")
	}
	return a
}

// pickerTests are about what happens between the gateway and a picker, and when there is none.
var pickerTests = []Test{
	{
		Name:      "FailOpen",
		Checks:    "when the pool's own picker is down and the pool says FailOpen, requests are served all the same",
		Manifests: []string{"route-mistral.yaml"},
		Run: func(t *testing.T, s *Suite) {
			s.servedBy(t, to("mistral"), "mistral")
			back := s.withoutPicker(t, "mistral")
			for _, body := range []string{"", `{"model":"mistral","prompt":"hello"}`} {
				// Not eventually: from the first request without a picker on.
				for range 20 {
					said, _, err := s.echoed(to("mistral").posting(body))
					require.NoError(t, err)
					require.Equal(t, "mistral", appOf(said.Pod))
				}
			}
			back()
			s.obeyedAgain(t, "mistral")
		},
	},
	{
		Name:      "FailClose",
		Checks:    "when the pool's own picker is down and the pool says FailClose, requests are refused and reach no pod",
		Manifests: []string{"route-llama.yaml"},
		Run: func(t *testing.T, s *Suite) {
			s.servedBy(t, to("llama"), "llama")
			back := s.withoutPicker(t, "llama")
			for _, body := range []string{"", `{"model":"llama","prompt":"hello"}`} {
				for range 20 {
					answer, err := s.send(to("llama").posting(body))
					require.NoError(t, err)
					require.Truef(t, isServerError(answer.status), "status %d, %s", answer.status, clip(answer.body))
				}
			}
			back()
			s.obeyedAgain(t, "llama")
		},
	},
	{
		Name:      "FallbackIsWalkedInOrder",
		Checks:    "of a list of endpoints, the first one that takes a connection gets the request, and is reported",
		Manifests: []string{"route-half.yaml"},
		Run: func(t *testing.T, s *Suite) {
			pods := s.pods(t, "mistral")
			require.GreaterOrEqual(t, len(pods), 3)
			at := func(pod int, port string) string { return net.JoinHostPort(pods[pod].Status.PodIP, port) }
			s.eventually(t, func() error {
				_, _, err := s.echoed(to("half").picked(at(0, "3000")))
				return err
			})
			for _, body := range []string{"", `{"model":"mistral","prompt":"hello"}`} {
				for first := range pods {
					second := (first + 1) % len(pods)
					lists := [][]string{
						{at(second, "3999"), at(first, "3000"), at(second, "3000")},
						{at(first, "3999"), at(second, "3999"), at(first, "3000")},
					}
					for _, list := range lists {
						said, answer, err := s.echoed(to("half").picked(list...).posting(body))
						require.NoErrorf(t, err, "list %v", list)
						require.Equalf(t, pods[first].Name, said.Pod, "list %v", list)
						require.Equalf(t, at(first, "3000"), answer.header.Get(servedHeader), "list %v", list)
						require.Equal(t, len(body), said.BodyBytes)
					}
				}
			}
			answer, err := s.send(to("half").picked(at(0, "3999"), at(1, "3999")))
			require.NoError(t, err)
			require.Truef(t, isServerError(answer.status), "nobody listens, and the status is %d", answer.status)
		},
	},
	{
		Name:      "RefusalsArePassedOn",
		Checks:    "an answer that the picker gives by itself reaches the client with its status, fields and text",
		Manifests: []string{"route-llama.yaml"},
		OwnPicker: "no other refuses a request because a header says so",
		Run: func(t *testing.T, s *Suite) {
			s.servedBy(t, to("llama"), "llama")
			for _, status := range []int{http.StatusTooManyRequests, http.StatusServiceUnavailable} {
				for _, body := range []string{"", `{"model":"llama"}`} {
					text := fmt.Sprint(status)
					refused := to("llama").with(refusalHeader, text)
					plain, err := s.send(refused.posting(body))
					require.NoError(t, err)
					require.Equal(t, status, plain.status)
					require.Equal(t, text, plain.header.Get("X-Picker-Refusal"))
					// A text without a type may be dressed as clients of the API expect errors.
					require.Contains(t, string(plain.body), "refused by the picker")

					typed, err := s.send(refused.with(refusalTypeHeader, "text/x-refusal").posting(body))
					require.NoError(t, err)
					require.Equal(t, status, typed.status)
					require.Equal(t, "text/x-refusal", typed.header.Get("Content-Type"))
					require.Equal(t, "refused by the picker", string(typed.body))
				}
			}
			s.servedBy(t, to("llama"), "llama")
		},
	},
	{
		Name:      "EventsAreStreamed",
		Checks:    "each event of a stream passes through gateway and picker before the next one is made",
		Manifests: []string{"route-llama.yaml"},
		Run: func(t *testing.T, s *Suite) {
			s.servedBy(t, to("llama"), "llama")
			for pod, endpoint := range s.endpointsOf(t, "llama", "3000") {
				s.stream(t, pod, endpoint)
			}
		},
	},
	{
		Name:      "LargeBodies",
		Checks:    "bodies of 1 MiB pass through gateway and picker unchanged in both directions",
		Manifests: []string{"route-llama.yaml", "route-llama-h2c.yaml"},
		Run: func(t *testing.T, s *Suite) {
			const size = 1 << 20
			body := pattern(size)
			sum := sha256.Sum256(body)
			digest := hex.EncodeToString(sum[:])
			for _, host := range []string{"llama", "llama-h2c"} {
				s.servedBy(t, to(host), "llama")
				for _, moment := range []string{"headers", "body"} {
					up := to(host).with(momentHeader, moment).posting(string(body))
					said, _, err := s.echoed(up)
					require.NoErrorf(t, err, "%s, the picker answers at the %s", host, moment)
					require.Equal(t, size, said.BodyBytes)
					require.Equal(t, digest, said.BodySHA256)
				}
				down, err := s.send(to(host).at(fmt.Sprintf("/bytes?count=%d", size)))
				require.NoError(t, err)
				require.Equal(t, http.StatusOK, down.status)
				require.Truef(t, bytes.Equal(body, down.body), "%d bytes of %d came, or others", len(down.body), size)
			}
		},
	},
	{
		Name:      "TrailersOfResponses",
		Checks:    "trailers of a model server's answer pass through picker and gateway",
		Manifests: []string{"route-llama.yaml", "route-llama-h2c.yaml"},
		Run: func(t *testing.T, s *Suite) {
			s.withTrailers(t, func(where string, said echo, answer answer) {
				require.Equal(t, "from "+said.Pod, answer.trailer.Get("X-Model-Trailer"), where)
			})
		},
	},
	{
		Name:      "TrailersOfRequests",
		Checks:    "trailers of a client's request pass through gateway and picker",
		Manifests: []string{"route-llama.yaml", "route-llama-h2c.yaml"},
		Run: func(t *testing.T, s *Suite) {
			s.withTrailers(t, func(where string, said echo, answer answer) {
				require.Equal(t, "from the client", said.Trailers.Get("X-Client-Trailer"), where)
			})
		},
	},
}

// withTrailers sends a request with a trailer and gets an answer with one, over both versions of HTTP on
// either side.
func (s *Suite) withTrailers(t *testing.T, check func(where string, said echo, answer answer)) {
	t.Helper()
	for _, host := range []string{"llama", "llama-h2c"} {
		s.servedBy(t, to(host), "llama")
		for _, h2c := range []bool{false, true} {
			where := fmt.Sprintf("pool %s, HTTP/2 from the client: %t", host, h2c)
			up := to(host).at("/trailers").with("Te", "trailers")
			up.h2c = h2c
			up.method = http.MethodPost
			// No length, so that the body is sent in chunks and trailers can follow.
			up.body = io.MultiReader(bytes.NewReader(pattern(1000)))
			up.trailer = http.Header{"X-Client-Trailer": {"from the client"}}
			said, answer, err := s.echoed(up)
			require.NoError(t, err, where)
			require.Equal(t, 1000, said.BodyBytes, where)
			check(where, said, answer)
		}
	}
}

// obeyedAgain waits until a picker that was away decides again.
func (s *Suite) obeyedAgain(t *testing.T, app string) {
	t.Helper()
	for pod, endpoint := range s.endpointsOf(t, app, "3000") {
		s.eventually(t, func() error {
			said, answer, err := s.echoed(to(app).picked(endpoint))
			if err != nil {
				return err
			}
			if said.Pod != pod || answer.header.Get(servedHeader) != endpoint {
				return fmt.Errorf("%s served, reported as %q, and the picker chose %s", said.Pod, answer.header.Get(servedHeader), pod)
			}
			return nil
		})
	}
}

// stream reads events of one pod, which makes each of them only when it is told that the one before has
// arrived here.
func (s *Suite) stream(t *testing.T, pod, endpoint string) {
	t.Helper()
	const events = 4
	ctx, cancel := context.WithTimeout(context.Background(), answerTimeout)
	defer cancel()
	id := url.QueryEscape(t.Name() + pod)
	response, err := s.open(ctx, to("llama").picked(endpoint).at(fmt.Sprintf("/sse?events=%d&id=%s", events, id)))
	require.NoError(t, err)
	defer response.Body.Close()
	require.Equal(t, http.StatusOK, response.StatusCode)
	require.Equal(t, "text/event-stream", response.Header.Get("Content-Type"))
	require.Equal(t, endpoint, response.Header.Get(servedHeader))
	lines := bufio.NewReader(response.Body)
	for number := range events {
		require.Equal(t, fmt.Sprintf("event %d of %s", number, pod), event(t, lines))
		if number < events-1 {
			passed, err := s.send(to("llama").picked(endpoint).at("/gate?id=" + id))
			require.NoError(t, err)
			require.Equal(t, http.StatusNoContent, passed.status)
		}
	}
	rest, err := io.ReadAll(lines)
	require.NoError(t, err)
	require.Empty(t, bytes.TrimSpace(rest))
}

// pattern is what the model server's /bytes answers with.
func pattern(size int) []byte {
	bytes := make([]byte, size)
	for i := range bytes {
		bytes[i] = byte(i % 251)
	}
	return bytes
}
