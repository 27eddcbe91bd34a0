package inference

import (
	"fmt"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
	"sigs.k8s.io/gateway-api/conformance/utils/weight"
)

// routingTests are about which pool, and which of its endpoints, gets a request.
var routingTests = []Test{
	{
		Name:      "PortOfBackendRefDoesNotMatter",
		Checks:    "a backendRef to a pool works without a port, with the pool's, and with another",
		Manifests: []string{"ports.yaml"},
		Run: func(t *testing.T, s *Suite) {
			s.routeAccepted(t, "ports", First)
			for _, path := range []string{"/unset", "/equal", "/different"} {
				s.servedBy(t, to("ports").at(path), "llama")
			}
		},
	},
	{
		Name:      "OneRouteTwoPools",
		Checks:    "two rules of one route lead to two pools",
		Manifests: []string{"two-pools.yaml"},
		Run: func(t *testing.T, s *Suite) {
			s.routeAccepted(t, "two-pools", First)
			s.servedBy(t, to("two").at("/llama"), "llama")
			s.servedBy(t, to("two").at("/mistral"), "mistral")
		},
	},
	{
		Name:      "TwoGatewaysTwoPools",
		Checks:    "the same host leads to another pool at another Gateway",
		Manifests: []string{"two-gateways.yaml"},
		Run: func(t *testing.T, s *Suite) {
			s.routeAccepted(t, "to-llama", First)
			s.routeAccepted(t, "to-mistral", Second)
			s.servedBy(t, to("gateways"), "llama")
			second := to("gateways")
			second.gateway = Second
			s.servedBy(t, second, "mistral")
			s.poolHas(t, "llama", First)
			s.poolHas(t, "mistral", Second)
		},
	},
	{
		Name:      "WeightsAcrossPools",
		Checks:    "a rule's weights share requests between two pools",
		Manifests: []string{"weights.yaml"},
		Run: func(t *testing.T, s *Suite) {
			s.routeAccepted(t, "weights", First)
			s.eventually(t, func() error {
				_, _, err := s.echoed(to("weights"))
				return err
			})
			sender := weight.NewFunctionBasedSender(func() (string, error) {
				said, _, err := s.echoed(to("weights"))
				return said.Pod, err
			})
			var err error
			for range weight.MaxTestRetries {
				if err = weight.TestWeightedDistribution(sender, map[string]float64{"llama": 0.7, "mistral": 0.3}); err == nil {
					return
				}
				t.Logf("not within its bounds: %v", err)
			}
			require.NoError(t, err)
		},
	},
	{
		Name:      "PickIsObeyed",
		Checks:    "every request goes to the endpoint that the picker names, with a body and without",
		Manifests: []string{"route-llama.yaml"},
		Run: func(t *testing.T, s *Suite) {
			s.servedBy(t, to("llama"), "llama")
			for pod, endpoint := range s.endpointsOf(t, "llama", "3000") {
				for _, body := range []string{"", `{"model":"llama","prompt":"hello"}`} {
					for range 5 {
						said, _, err := s.echoed(to("llama").picked(endpoint).posting(body))
						require.NoError(t, err)
						require.Equal(t, pod, said.Pod)
						require.Equal(t, len(body), said.BodyBytes)
					}
				}
			}
		},
	},
	{
		Name:      "FirstOfAListIsTaken",
		Checks:    "of a list of endpoints that all answer, the first one gets the request",
		Manifests: []string{"route-llama.yaml"},
		Run: func(t *testing.T, s *Suite) {
			s.servedBy(t, to("llama"), "llama")
			endpoints := s.endpointsOf(t, "llama", "3000")
			for pod, endpoint := range endpoints {
				list := []string{endpoint}
				for other, endpoint := range endpoints {
					if other != pod {
						list = append(list, endpoint)
					}
				}
				for range 5 {
					said, _, err := s.echoed(to("llama").picked(list...))
					require.NoError(t, err)
					require.Equal(t, pod, said.Pod)
				}
			}
		},
	},
	{
		Name:      "PickIsObeyedPerPort",
		Checks:    "each port of a pod is an endpoint of its own, as ranks of data parallelism are",
		Manifests: []string{"route-ranks.yaml"},
		Run: func(t *testing.T, s *Suite) {
			s.servedBy(t, to("ranks"), "ranks")
			for _, pod := range s.pods(t, "ranks") {
				for _, port := range []string{"3000", "3002", "3004"} {
					endpoint := net.JoinHostPort(pod.Status.PodIP, port)
					for range 3 {
						said, answer, err := s.echoed(to("ranks").picked(endpoint))
						require.NoError(t, err)
						require.Equal(t, pod.Name+":"+port, said.Pod+":"+said.Port)
						require.Equal(t, endpoint, answer.header.Get(servedHeader))
					}
				}
			}
		},
	},
	{
		Name:      "ServedEndpointIsReported",
		Checks:    "the picker is told which endpoint served, whoever chose it",
		Manifests: []string{"route-llama.yaml"},
		Run: func(t *testing.T, s *Suite) {
			s.servedBy(t, to("llama"), "llama")
			endpoints := s.endpointsOf(t, "llama", "3000")
			for pod, endpoint := range endpoints {
				said, answer, err := s.echoed(to("llama").picked(endpoint))
				require.NoError(t, err)
				require.Equal(t, pod, said.Pod)
				require.Equal(t, endpoint, answer.header.Get(servedHeader))
			}
			s.eventually(t, func() error {
				said, answer, err := s.echoed(to("llama"))
				if err != nil {
					return err
				}
				if served := answer.header.Get(servedHeader); served != endpoints[said.Pod] {
					return fmt.Errorf("%s served, and %q was reported", endpoints[said.Pod], served)
				}
				return nil
			})
		},
	},
}
