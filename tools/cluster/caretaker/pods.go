package caretaker

import (
	"context"
	"fmt"
	"net/netip"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
)

// podIPAnnotation on a pod fixes the address that it gets on a fake node, for a test that runs the
// pod's server itself.
const podIPAnnotation = "bed.forebay.dev/pod-ip"

// podWorkers is how many pods are written at once.
const podWorkers = 16

// fakePods plays the kubelet of the fake nodes. A bound pod becomes Running and Ready once; what
// a test then writes into its status stays. A deleted pod goes at once.
type fakePods struct {
	client    kubernetes.Interface
	nodes     *fakeNodes
	addresses *pool
	lister    listers.PodLister
	synced    cache.InformerSynced
	queue     keyQueue
}

func newFakePods(client kubernetes.Interface, factory informers.SharedInformerFactory, nodes *fakeNodes, addresses *pool) *fakePods {
	informer := factory.Core().V1().Pods()
	return &fakePods{
		client:    client,
		nodes:     nodes,
		addresses: addresses,
		lister:    informer.Lister(),
		synced:    informer.Informer().HasSynced,
		queue:     newQueue(informer.Informer()),
	}
}

func (p *fakePods) run(ctx context.Context) error {
	if !cache.WaitForCacheSync(ctx.Done(), p.synced) {
		return nil
	}
	// Addresses that pods already have are taken before any is given out.
	pods, err := p.lister.List(labels.Everything())
	if err != nil {
		return err
	}
	for _, object := range pods {
		if address, err := netip.ParseAddr(object.Status.PodIP); err == nil && p.nodes.has(object.Spec.NodeName) {
			p.addresses.claim(object.Namespace+"/"+object.Name, address)
		}
	}
	return work(ctx, p.queue, podWorkers, p.sync)
}

func (p *fakePods) sync(ctx context.Context, key string) error {
	namespace, name, err := cache.SplitMetaNamespaceKey(key)
	if err != nil {
		return err
	}
	pod, err := p.lister.Pods(namespace).Get(name)
	if errors.IsNotFound(err) {
		p.addresses.release(key)
		return nil
	}
	if err != nil || !p.nodes.has(pod.Spec.NodeName) {
		return err
	}
	switch {
	case pod.DeletionTimestamp != nil:
		return ignoreGone(p.client.CoreV1().Pods(namespace).Delete(ctx, name, meta.DeleteOptions{
			GracePeriodSeconds: new(int64),
			Preconditions:      meta.NewUIDPreconditions(string(pod.UID)),
		}))
	case pod.Status.Phase == core.PodPending && pod.Status.PodIP == "":
		return p.start(ctx, key, pod.DeepCopy())
	default:
		return nil
	}
}

func (p *fakePods) start(ctx context.Context, key string, pod *core.Pod) error {
	address := pod.Annotations[podIPAnnotation]
	if address == "" {
		taken, err := p.addresses.take(key)
		if err != nil {
			return err
		}
		address = taken.String()
	}
	running(pod, address)
	_, err := p.client.CoreV1().Pods(pod.Namespace).UpdateStatus(ctx, pod, meta.UpdateOptions{})
	return ignoreGone(err)
}

// running writes what a kubelet reports of a pod whose containers all started and became ready.
func running(pod *core.Pod, address string) {
	now := meta.Now()
	pod.Status.Phase = core.PodRunning
	pod.Status.StartTime = &now
	pod.Status.PodIP = address
	pod.Status.PodIPs = []core.PodIP{{IP: address}}
	for _, kind := range []core.PodConditionType{core.PodInitialized, core.ContainersReady, core.PodReady} {
		setCondition(&pod.Status, core.PodCondition{Type: kind, Status: core.ConditionTrue, LastTransitionTime: now})
	}
	started := true
	pod.Status.ContainerStatuses = nil
	for i, container := range pod.Spec.Containers {
		pod.Status.ContainerStatuses = append(pod.Status.ContainerStatuses, core.ContainerStatus{
			Name:        container.Name,
			Image:       container.Image,
			ImageID:     "fake",
			ContainerID: fmt.Sprintf("fake://%s-%d", pod.UID, i),
			Ready:       true,
			Started:     &started,
			State:       core.ContainerState{Running: &core.ContainerStateRunning{StartedAt: now}},
		})
	}
}

func setCondition(status *core.PodStatus, condition core.PodCondition) {
	for i := range status.Conditions {
		if status.Conditions[i].Type == condition.Type {
			status.Conditions[i] = condition
			return
		}
	}
	status.Conditions = append(status.Conditions, condition)
}

// ignoreGone drops the errors of writing to an object that changed or went meanwhile: the informer
// brings its new state, or nothing is left to do.
func ignoreGone(err error) error {
	if errors.IsNotFound(err) || errors.IsConflict(err) {
		return nil
	}
	return err
}
