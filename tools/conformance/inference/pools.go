package inference

import (
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/gateway-api/conformance/utils/kubernetes"
)

// Conditions of a pool, and their reasons.
const (
	accepted     = "Accepted"
	resolvedRefs = "ResolvedRefs"
)

// poolTests are about the status of pools and routes.
var poolTests = []Test{
	{
		Name:      "PoolIsAccepted",
		Checks:    "a pool that a route leads to is accepted, its picker is found, and requests reach its pods",
		Manifests: []string{"route-llama.yaml"},
		Run: func(t *testing.T, s *Suite) {
			s.poolSays(t, "llama", First, accepted, metav1.ConditionTrue, "Accepted")
			s.poolSays(t, "llama", First, resolvedRefs, metav1.ConditionTrue, "ResolvedRefs")
			s.servedBy(t, to("llama"), "llama")
		},
	},
	{
		Name:   "ParentsFollowRoutes",
		Checks: "a pool has one entry for each Gateway with a route to it, and none when the last route is gone",
		Run: func(t *testing.T, s *Suite) {
			s.poolHas(t, "bare")
			s.apply(t, "two-parents-first.yaml")
			s.poolHas(t, "bare", First)
			s.apply(t, "two-parents-second.yaml")
			s.poolHas(t, "bare", First, Second)
			s.poolSays(t, "bare", First, accepted, metav1.ConditionTrue, "Accepted")
			s.poolSays(t, "bare", Second, accepted, metav1.ConditionTrue, "Accepted")
			s.servedBy(t, to("parents"), "mistral")
			s.deleteRoute(t, "to-bare-by-first")
			s.poolHas(t, "bare", Second)
			second := to("parents")
			second.gateway = Second
			s.servedBy(t, second, "mistral")
			s.deleteRoute(t, "to-bare-by-second")
			s.poolHas(t, "bare")
			s.refused(t, second, func(status int) bool { return status == http.StatusNotFound })
		},
	},
	{
		Name:      "PickerServiceIsWrong",
		Checks:    "a picker whose Service is not there, or is an ExternalName, is told in ResolvedRefs",
		Manifests: []string{"broken-pickers.yaml"},
		Run: func(t *testing.T, s *Suite) {
			for _, pool := range []string{"picker-missing", "picker-elsewhere"} {
				s.poolSays(t, pool, First, resolvedRefs, metav1.ConditionFalse, "InvalidExtensionRef")
			}
			for _, path := range []string{"/missing", "/elsewhere"} {
				s.refused(t, to("broken").at(path), func(status int) bool { return status >= 500 })
			}
		},
	},
	{
		Name:      "PoolWithoutPicker",
		Checks:    "a pool without a picker is served by the gateway's own, or refused with EndpointPickerRefMissing",
		Manifests: []string{"route-bare.yaml"},
		Run: func(t *testing.T, s *Suite) {
			s.poolHas(t, "bare", First)
			parents, _, err := s.parents("bare")
			require.NoError(t, err)
			for _, condition := range parents[First].Conditions {
				if condition.Type == accepted && condition.Reason == "EndpointPickerRefMissing" {
					s.poolSays(t, "bare", First, accepted, metav1.ConditionFalse, "EndpointPickerRefMissing")
					return
				}
			}
			s.poolSays(t, "bare", First, accepted, metav1.ConditionTrue, "Accepted")
			s.servedBy(t, to("bare"), "mistral")
		},
	},
	{
		Name:      "RouteToMissingPool",
		Checks:    "a route to a pool that is not there says BackendNotFound, and its requests get 500",
		Manifests: []string{"missing-pool.yaml"},
		Run: func(t *testing.T, s *Suite) {
			route := types.NamespacedName{Namespace: Namespace, Name: "missing-pool"}
			gateway := types.NamespacedName{Namespace: Namespace, Name: First}
			kubernetes.HTTPRouteMustHaveResolvedRefsMustHaveBackendsNotFound(t, s.Client, s.TimeoutConfig, route, gateway)
			s.refused(t, to("missing"), func(status int) bool { return status == http.StatusInternalServerError })
		},
	},
	{
		Name:      "AppProtocol",
		Checks:    "model servers are spoken to in HTTP/1.1 or in HTTP/2 without TLS, as their pool says",
		Manifests: []string{"route-llama.yaml", "route-llama-h2c.yaml"},
		Run: func(t *testing.T, s *Suite) {
			for host, proto := range map[string]string{"llama": "HTTP/1.1", "llama-h2c": "HTTP/2.0"} {
				s.servedBy(t, to(host), "llama")
				said, _, err := s.echoed(to(host))
				require.NoError(t, err)
				require.Equalf(t, proto, said.Proto, "pool %s", host)
			}
		},
	},
}

// endpointsOf are the pods of an app as ip:port.
func (s *Suite) endpointsOf(t *testing.T, app, port string) map[string]string {
	t.Helper()
	pods := s.pods(t, app)
	require.NotEmptyf(t, pods, "pods of %s", app)
	endpoints := map[string]string{}
	for _, pod := range pods {
		require.NotEmptyf(t, pod.Status.PodIP, "pod %s", pod.Name)
		endpoints[pod.Name] = net.JoinHostPort(pod.Status.PodIP, port)
	}
	return endpoints
}

func isServerError(status int) bool { return status >= 500 && status < 600 }

func appOf(pod string) string {
	app, _, _ := strings.Cut(pod, "-")
	return app
}
