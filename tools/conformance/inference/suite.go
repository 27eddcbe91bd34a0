package inference

import (
	"context"
	"embed"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/gateway-api/conformance"
	"sigs.k8s.io/gateway-api/conformance/utils/http"
	"sigs.k8s.io/gateway-api/conformance/utils/kubernetes"
	"sigs.k8s.io/gateway-api/conformance/utils/suite"
)

// Namespace is where everything of this suite is.
const Namespace = "inference-conformance"

// Names of the Gateways in base.yaml.
const (
	First  = "first"
	Second = "second"
)

//go:embed manifests/*.yaml
var manifests embed.FS

// A Test is one thing that a gateway must do.
type Test struct {
	// Name is unique, and what -run-test takes.
	Name string
	// Checks says in one sentence what is asked for.
	Checks string
	// Manifests are applied before Run and deleted after it.
	Manifests []string
	// OwnPicker is why the test needs the suite's own picker; empty if any other will do.
	OwnPicker string
	Run       func(t *testing.T, s *Suite)
}

// Suite is what tests share.
type Suite struct {
	suite.ConformanceOptions
	applier kubernetes.Applier
	// controller is what the GatewayClass names.
	controller string
	// addresses of Gateways, as host:port.
	addresses map[string]string
}

// Run applies the base, waits for it, and runs each test on its own.
func Run(t *testing.T, tests []Test) {
	s := &Suite{
		ConformanceOptions: conformance.DefaultOptions(t),
		addresses:          map[string]string{},
	}
	s.controller = kubernetes.GWCMustHaveAcceptedConditionTrue(t, s.Client, s.TimeoutConfig, s.GatewayClassName)
	s.applier = kubernetes.Applier{
		ManifestFS:     []fs.FS{manifests},
		GatewayClass:   s.GatewayClassName,
		ControllerName: s.controller,
	}
	if s.RunTest != "" && !slices.ContainsFunc(tests, func(test Test) bool { return test.Name == s.RunTest }) {
		t.Fatalf("no test is called %q", s.RunTest)
	}
	s.applier.MustApplyWithCleanup(t, s.Client, s.TimeoutConfig, "manifests/base.yaml", s.CleanupBaseResources)
	kubernetes.NamespacesMustBeReady(t, s.Client, s.TimeoutConfig, []string{Namespace})
	if isForeign() {
		s.replacePickers(t)
	}
	for _, name := range []string{First, Second} {
		ref := kubernetes.NewGatewayRef(types.NamespacedName{Namespace: Namespace, Name: name})
		address, err := kubernetes.WaitForGatewayAddress(t, s.Client, s.TimeoutConfig, ref)
		require.NoErrorf(t, err, "Gateway %s has no address", name)
		s.addresses[name] = address
	}
	for _, test := range tests {
		t.Run(test.Name, func(t *testing.T) {
			if s.RunTest != "" && s.RunTest != test.Name || slices.Contains(s.SkipTests, test.Name) {
				t.Skip("left out")
			}
			if isForeign() && test.OwnPicker != "" {
				t.Skipf("needs the suite's own picker: %s", test.OwnPicker)
			}
			for _, manifest := range test.Manifests {
				s.apply(t, manifest)
			}
			s.routesAreKnown(t)
			test.Run(t, s)
		})
	}
}

// apply applies a manifest until the end of the test.
func (s *Suite) apply(t *testing.T, manifest string) {
	t.Helper()
	s.applier.MustApplyWithCleanup(t, s.Client, s.TimeoutConfig, "manifests/"+manifest, s.CleanupTestResources)
}

// eventually waits until check holds several times in a row.
func (s *Suite) eventually(t *testing.T, check func() error) {
	t.Helper()
	var told string
	converged := func(time.Duration) bool {
		err := check()
		if err != nil && err.Error() != told {
			told = err.Error()
			t.Logf("not yet: %v", err)
		}
		return err == nil
	}
	http.AwaitConvergence(t, s.TimeoutConfig.RequiredConsecutiveSuccesses, s.TimeoutConfig.MaxTimeToConsistency, converged)
}

// pods are the pods with this label `app`, by name.
func (s *Suite) pods(t *testing.T, app string) []corev1.Pod {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), s.TimeoutConfig.GetTimeout)
	defer cancel()
	var list corev1.PodList
	err := s.Client.List(ctx, &list, client.InNamespace(Namespace), client.MatchingLabels{"app": app})
	require.NoErrorf(t, err, "pods of %s", app)
	slices.SortFunc(list.Items, func(a, b corev1.Pod) int { return strings.Compare(a.Name, b.Name) })
	return list.Items
}

// routeAccepted waits until the Gateways have taken a route.
func (s *Suite) routeAccepted(t *testing.T, route string, gateways ...string) {
	t.Helper()
	for _, gateway := range gateways {
		ref := kubernetes.NewGatewayRef(types.NamespacedName{Namespace: Namespace, Name: gateway})
		kubernetes.GatewayAndRoutesMustBeAccepted(t, s.Client, s.TimeoutConfig, s.controller, ref,
			&gatewayv1.HTTPRoute{}, false, types.NamespacedName{Namespace: Namespace, Name: route})
	}
}
