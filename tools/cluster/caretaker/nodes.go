package caretaker

import (
	"context"
	"fmt"
	"slices"
	"time"

	coordination "k8s.io/api/coordination/v1"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/klog/v2"
)

const (
	// fakeLabel marks the nodes that have no kubelet.
	fakeLabel = "bed.forebay.dev/fake"
	// heartbeatAnnotation set to "off" on a fake node stops its heartbeat: the way to lose a node.
	heartbeatAnnotation = "bed.forebay.dev/heartbeat"
	// leaseSeconds is the duration that kubelets write into their leases.
	leaseSeconds = 40
)

// fakeNodes creates nodes and renews their leases. A node that somebody deleted stays deleted.
type fakeNodes struct {
	client   kubernetes.Interface
	names    []string
	interval time.Duration
}

func (n *fakeNodes) has(name string) bool { return slices.Contains(n.names, name) }

func (n *fakeNodes) run(ctx context.Context) error {
	for i, name := range n.names {
		if err := n.create(ctx, name, i); err != nil {
			return fmt.Errorf("creating node %s: %w", name, err)
		}
	}
	ticker := time.NewTicker(n.interval)
	defer ticker.Stop()
	for {
		n.renewAll(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// create makes the node and reports it Ready, as a kubelet does when it registers.
func (n *fakeNodes) create(ctx context.Context, name string, index int) error {
	nodes := n.client.CoreV1().Nodes()
	node, err := nodes.Create(ctx, &core.Node{ObjectMeta: meta.ObjectMeta{
		Name: name,
		Labels: map[string]string{
			fakeLabel:              "true",
			core.LabelHostname:     name,
			core.LabelOSStable:     "linux",
			core.LabelArchStable:   "amd64",
			core.LabelTopologyZone: fmt.Sprintf("zone-%d", index%3+1),
		},
	}}, meta.CreateOptions{})
	if errors.IsAlreadyExists(err) {
		return nil
	}
	if err != nil {
		return err
	}
	node.Status = status(name)
	_, err = nodes.UpdateStatus(ctx, node, meta.UpdateOptions{})
	return err
}

func status(name string) core.NodeStatus {
	resources := core.ResourceList{
		core.ResourceCPU:              resource.MustParse("64"),
		core.ResourceMemory:           resource.MustParse("512Gi"),
		core.ResourceEphemeralStorage: resource.MustParse("1Ti"),
		core.ResourcePods:             resource.MustParse("1000"),
	}
	now := meta.Now()
	condition := func(kind core.NodeConditionType, value core.ConditionStatus, reason string) core.NodeCondition {
		return core.NodeCondition{Type: kind, Status: value, Reason: reason,
			LastHeartbeatTime: now, LastTransitionTime: now}
	}
	return core.NodeStatus{
		Capacity:    resources,
		Allocatable: resources,
		Addresses:   []core.NodeAddress{{Type: core.NodeHostName, Address: name}},
		NodeInfo:    core.NodeSystemInfo{KubeletVersion: "fake", OperatingSystem: "linux", Architecture: "amd64"},
		Conditions: []core.NodeCondition{
			condition(core.NodeReady, core.ConditionTrue, "KubeletReady"),
			condition(core.NodeMemoryPressure, core.ConditionFalse, "KubeletHasSufficientMemory"),
			condition(core.NodeDiskPressure, core.ConditionFalse, "KubeletHasNoDiskPressure"),
			condition(core.NodePIDPressure, core.ConditionFalse, "KubeletHasSufficientPID"),
		},
	}
}

// renewAll renews every lease once. A failure is logged and tried again at the next tick: the
// grace of the node lifecycle controller is several ticks long.
func (n *fakeNodes) renewAll(ctx context.Context) {
	for _, name := range n.names {
		if err := n.renew(ctx, name); err != nil && ctx.Err() == nil {
			klog.ErrorS(err, "heartbeat not written", "node", name)
		}
	}
}

func (n *fakeNodes) renew(ctx context.Context, name string) error {
	node, err := n.client.CoreV1().Nodes().Get(ctx, name, meta.GetOptions{ResourceVersion: "0"})
	if errors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if node.Annotations[heartbeatAnnotation] == "off" {
		return nil
	}
	if err := n.returnReady(ctx, node); err != nil {
		return err
	}
	now := meta.NowMicro()
	seconds := int32(leaseSeconds)
	leases := n.client.CoordinationV1().Leases(core.NamespaceNodeLease)
	lease, err := leases.Get(ctx, name, meta.GetOptions{})
	if errors.IsNotFound(err) {
		_, err = leases.Create(ctx, &coordination.Lease{
			ObjectMeta: meta.ObjectMeta{Name: name, OwnerReferences: []meta.OwnerReference{
				{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID},
			}},
			Spec: coordination.LeaseSpec{HolderIdentity: &name, LeaseDurationSeconds: &seconds, RenewTime: &now},
		}, meta.CreateOptions{})
		return err
	}
	if err != nil {
		return err
	}
	lease.Spec.RenewTime = &now
	_, err = leases.Update(ctx, lease, meta.UpdateOptions{})
	return err
}

// returnReady reports a node Ready again that the lifecycle controller gave up on.
func (n *fakeNodes) returnReady(ctx context.Context, node *core.Node) error {
	for _, condition := range node.Status.Conditions {
		if condition.Type == core.NodeReady && condition.Status == core.ConditionTrue {
			return nil
		}
	}
	node = node.DeepCopy()
	node.Status.Conditions = status(node.Name).Conditions
	_, err := n.client.CoreV1().Nodes().UpdateStatus(ctx, node, meta.UpdateOptions{})
	return err
}
