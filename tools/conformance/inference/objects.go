package inference

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gatewayv1 "sigs.k8s.io/gateway-api/apis/v1"
)

// parent is an entry of a pool's status. The Inference Extension's own types are not used.
type parent struct {
	ParentRef struct {
		Group     string `json:"group"`
		Kind      string `json:"kind"`
		Name      string `json:"name"`
		Namespace string `json:"namespace"`
	} `json:"parentRef"`
	ControllerName string             `json:"controllerName"`
	Conditions     []metav1.Condition `json:"conditions"`
}

// parents reads the status of a pool, by the Gateways' names.
func (s *Suite) parents(pool string) (map[string]parent, int64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), s.TimeoutConfig.GetTimeout)
	defer cancel()
	object := &unstructured.Unstructured{}
	object.SetGroupVersionKind(schema.GroupVersionKind{
		Group: "inference.networking.k8s.io", Version: "v1", Kind: "InferencePool",
	})
	err := s.Client.Get(ctx, types.NamespacedName{Namespace: Namespace, Name: pool}, object)
	if err != nil {
		return nil, 0, err
	}
	var read struct {
		Status struct {
			Parents []parent `json:"parents"`
		} `json:"status"`
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, &read); err != nil {
		return nil, 0, err
	}
	all := map[string]parent{}
	for _, parent := range read.Status.Parents {
		all[parent.ParentRef.Name] = parent
	}
	return all, object.GetGeneration(), nil
}

// routesAreKnown waits until the gateway has said something of every route. The one of an earlier test may
// have had the name of one of these, and may be served until its end is noticed.
func (s *Suite) routesAreKnown(t *testing.T) {
	t.Helper()
	s.eventually(t, func() error {
		ctx, cancel := context.WithTimeout(context.Background(), s.TimeoutConfig.GetTimeout)
		defer cancel()
		var routes gatewayv1.HTTPRouteList
		if err := s.Client.List(ctx, &routes, client.InNamespace(Namespace)); err != nil {
			return err
		}
		for _, route := range routes.Items {
			known := slices.ContainsFunc(route.Status.Parents, func(parent gatewayv1.RouteParentStatus) bool {
				return string(parent.ControllerName) == s.controller
			})
			if !known {
				return fmt.Errorf("nothing is said of HTTPRoute %s", route.Name)
			}
		}
		return nil
	})
}

// poolHas waits until the pool has an entry for each of these Gateways and no other.
func (s *Suite) poolHas(t *testing.T, pool string, gateways ...string) {
	t.Helper()
	s.eventually(t, func() error {
		parents, _, err := s.parents(pool)
		if err != nil {
			return err
		}
		found := slices.Sorted(maps.Keys(parents))
		if !slices.Equal(found, gateways) {
			return fmt.Errorf("parents of pool %s are %v, want %v", pool, found, gateways)
		}
		return nil
	})
}

// poolSays waits until the pool's entry for a Gateway has a condition, of the pool's present state.
func (s *Suite) poolSays(t *testing.T, pool, gateway, kind string, status metav1.ConditionStatus, reasons ...string) {
	t.Helper()
	s.eventually(t, func() error {
		parents, generation, err := s.parents(pool)
		if err != nil {
			return err
		}
		parent, ok := parents[gateway]
		if !ok {
			return fmt.Errorf("pool %s has no entry for Gateway %s", pool, gateway)
		}
		ref := parent.ParentRef
		if ref.Group != gatewayv1.GroupName || ref.Kind != "Gateway" || ref.Namespace != "" && ref.Namespace != Namespace {
			return fmt.Errorf("pool %s: the parent is %+v", pool, ref)
		}
		if parent.ControllerName != "" && parent.ControllerName != s.controller {
			return fmt.Errorf("pool %s: written by %s, want %s", pool, parent.ControllerName, s.controller)
		}
		for _, condition := range parent.Conditions {
			if condition.Type != kind {
				continue
			}
			if condition.Status != status || !slices.Contains(reasons, condition.Reason) {
				return fmt.Errorf("pool %s: %s is %s, %s (%s), want %s, %s", pool, kind, condition.Status,
					condition.Reason, condition.Message, status, strings.Join(reasons, " or "))
			}
			if condition.ObservedGeneration != generation {
				return fmt.Errorf("pool %s: %s is of generation %d, want %d", pool, kind, condition.ObservedGeneration, generation)
			}
			return nil
		}
		return fmt.Errorf("pool %s has no condition %s", pool, kind)
	})
}

// deleteRoute deletes a route.
func (s *Suite) deleteRoute(t *testing.T, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), s.TimeoutConfig.DeleteTimeout)
	defer cancel()
	route := &gatewayv1.HTTPRoute{ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: name}}
	require.NoErrorf(t, s.Client.Delete(ctx, route), "route %s", name)
}

// withoutPicker takes the picker of a pool away until the returned function, or the end of the test.
func (s *Suite) withoutPicker(t *testing.T, pool string) (back func()) {
	t.Helper()
	deployment := pool + pickerSuffix
	s.scale(t, deployment, 0)
	gone := false
	back = func() {
		if !gone {
			gone = true
			s.scale(t, deployment, 1)
		}
	}
	t.Cleanup(back)
	return back
}

// scale waits until the Deployment has so many ready pods, and no others are left.
func (s *Suite) scale(t *testing.T, name string, replicas int32) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), s.TimeoutConfig.NamespacesMustBeReady)
	defer cancel()
	key := types.NamespacedName{Namespace: Namespace, Name: name}
	deployment := &appsv1.Deployment{}
	require.NoErrorf(t, s.Client.Get(ctx, key, deployment), "Deployment %s", name)
	patch := client.MergeFrom(deployment.DeepCopy())
	deployment.Spec.Replicas = &replicas
	require.NoErrorf(t, s.Client.Patch(ctx, deployment, patch), "Deployment %s", name)
	s.settled(t, ctx, name, replicas)
}

// settled waits until a Deployment has so many ready pods of its present form, and no others are left.
func (s *Suite) settled(t *testing.T, ctx context.Context, name string, replicas int32) {
	t.Helper()
	key := types.NamespacedName{Namespace: Namespace, Name: name}
	err := wait.PollUntilContextCancel(ctx, 200*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		deployment := &appsv1.Deployment{}
		if err := s.Client.Get(ctx, key, deployment); err != nil {
			return false, err
		}
		status := deployment.Status
		settled := status.ObservedGeneration >= deployment.Generation &&
			status.UpdatedReplicas == replicas && status.ReadyReplicas == replicas
		return settled && len(s.pods(t, name)) == int(replicas), nil
	})
	require.NoErrorf(t, err, "Deployment %s has not got %d pods", name, replicas)
}
