package caretaker

import (
	"context"
	"net/netip"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
)

// loadBalancers gives each Service of type LoadBalancer one address and writes it into the
// Service's status. Forwarding is done by kube-proxy, which serves these addresses like cluster
// addresses. spec.loadBalancerIP is honoured if it is free and inside the range; otherwise the
// Service stays pending, as it does in a cloud.
type loadBalancers struct {
	client    kubernetes.Interface
	addresses *pool
	lister    listers.ServiceLister
	synced    cache.InformerSynced
	queue     keyQueue
}

func newLoadBalancers(client kubernetes.Interface, factory informers.SharedInformerFactory, addresses *pool) *loadBalancers {
	informer := factory.Core().V1().Services()
	return &loadBalancers{
		client:    client,
		addresses: addresses,
		lister:    informer.Lister(),
		synced:    informer.Informer().HasSynced,
		queue:     newQueue(informer.Informer()),
	}
}

func (b *loadBalancers) run(ctx context.Context) error {
	if !cache.WaitForCacheSync(ctx.Done(), b.synced) {
		return nil
	}
	services, err := b.lister.List(labels.Everything())
	if err != nil {
		return err
	}
	for _, service := range services {
		if address, ok := current(service); ok {
			b.addresses.claim(service.Namespace+"/"+service.Name, address)
		}
	}
	return work(ctx, b.queue, 1, b.sync)
}

// current is the address that the status of a Service shows.
func current(service *core.Service) (netip.Addr, bool) {
	for _, ingress := range service.Status.LoadBalancer.Ingress {
		if address, err := netip.ParseAddr(ingress.IP); err == nil {
			return address, true
		}
	}
	return netip.Addr{}, false
}

func (b *loadBalancers) sync(ctx context.Context, key string) error {
	namespace, name, err := cache.SplitMetaNamespaceKey(key)
	if err != nil {
		return err
	}
	service, err := b.lister.Services(namespace).Get(name)
	if errors.IsNotFound(err) {
		b.addresses.release(key)
		return nil
	}
	if err != nil {
		return err
	}
	wanted, err := b.wanted(key, service)
	if err != nil {
		return err
	}
	if held, ok := current(service); ok == wanted.IsValid() && held == wanted {
		return nil
	}
	service = service.DeepCopy()
	service.Status.LoadBalancer.Ingress = nil
	if wanted.IsValid() {
		mode := core.LoadBalancerIPModeVIP
		service.Status.LoadBalancer.Ingress = []core.LoadBalancerIngress{{IP: wanted.String(), IPMode: &mode}}
	}
	_, err = b.client.CoreV1().Services(namespace).UpdateStatus(ctx, service, meta.UpdateOptions{})
	return ignoreGone(err)
}

// wanted is the address that the Service should have; the zero address for none.
func (b *loadBalancers) wanted(key string, service *core.Service) (netip.Addr, error) {
	if service.Spec.Type != core.ServiceTypeLoadBalancer || service.Spec.LoadBalancerClass != nil || service.DeletionTimestamp != nil {
		b.addresses.release(key)
		return netip.Addr{}, nil
	}
	if service.Spec.LoadBalancerIP == "" {
		return b.addresses.take(key)
	}
	address, err := netip.ParseAddr(service.Spec.LoadBalancerIP)
	if err != nil || !b.addresses.claim(key, address) {
		klog.InfoS("the address asked for cannot be had", "service", key, "address", service.Spec.LoadBalancerIP)
		b.addresses.release(key)
		return netip.Addr{}, nil
	}
	return address, nil
}
