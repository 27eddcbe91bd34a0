package main

import (
	"context"
	"log"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// pool knows the ready endpoints of one pool, and whose turn it is.
type pool struct {
	client    kubernetes.Interface
	namespace string
	selector  string
	ports     []int

	lock      sync.Mutex
	endpoints []string
	turn      int
}

func newPool(namespace, selector string, ports []int) (*pool, error) {
	config, err := rest.InClusterConfig()
	if err != nil {
		return nil, err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	return &pool{client: client, namespace: namespace, selector: selector, ports: ports}, nil
}

// follow looks at the pods again and again until ctx ends.
func (p *pool) follow(ctx context.Context, every time.Duration) {
	for {
		if err := p.look(ctx); err != nil && ctx.Err() == nil {
			log.Printf("cannot list pods: %v", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(every):
		}
	}
}

func (p *pool) look(ctx context.Context) error {
	options := metav1.ListOptions{LabelSelector: p.selector}
	pods, err := p.client.CoreV1().Pods(p.namespace).List(ctx, options)
	if err != nil {
		return err
	}
	var endpoints []string
	for _, pod := range pods.Items {
		if !isReady(&pod) {
			continue
		}
		for _, port := range p.ports {
			endpoints = append(endpoints, net.JoinHostPort(pod.Status.PodIP, strconv.Itoa(port)))
		}
	}
	slices.Sort(endpoints)
	p.lock.Lock()
	defer p.lock.Unlock()
	p.endpoints = endpoints
	return nil
}

func isReady(pod *corev1.Pod) bool {
	if pod.Status.PodIP == "" || pod.DeletionTimestamp != nil {
		return false
	}
	return slices.ContainsFunc(pod.Status.Conditions, func(condition corev1.PodCondition) bool {
		return condition.Type == corev1.PodReady && condition.Status == corev1.ConditionTrue
	})
}

// next is the endpoint whose turn it is among those allowed; nil allows all. Empty if there is none.
func (p *pool) next(allowed []string) string {
	p.lock.Lock()
	defer p.lock.Unlock()
	endpoints := p.endpoints
	if allowed != nil {
		endpoints = slices.DeleteFunc(slices.Clone(endpoints), func(endpoint string) bool {
			return !slices.Contains(allowed, endpoint)
		})
	}
	if len(endpoints) == 0 {
		return ""
	}
	p.turn++
	return endpoints[p.turn%len(endpoints)]
}

// complete gives an address without a port the pool's first one.
func (p *pool) complete(address string) string {
	if _, _, err := net.SplitHostPort(address); err == nil {
		return address
	}
	return net.JoinHostPort(address, strconv.Itoa(p.ports[0]))
}
