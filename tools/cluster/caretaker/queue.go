package caretaker

import (
	"context"
	"time"

	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/klog/v2"
)

// keyQueue holds the keys of objects that must be looked at; one that failed comes again later.
type keyQueue = workqueue.TypedRateLimitingInterface[string]

// newQueue gets the key of every object that comes, changes or goes.
func newQueue(informer cache.SharedIndexInformer) keyQueue {
	queue := workqueue.NewTypedRateLimitingQueue(
		workqueue.NewTypedItemExponentialFailureRateLimiter[string](50*time.Millisecond, 5*time.Second))
	add := func(object any) {
		if key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(object); err == nil {
			queue.Add(key)
		}
	}
	_, _ = informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    add,
		UpdateFunc: func(_, object any) { add(object) },
		DeleteFunc: add,
	})
	return queue
}

// work drains the queue with some workers until the context ends. A key that failed comes again.
func work(ctx context.Context, queue keyQueue, workers int, sync func(context.Context, string) error) error {
	done := make(chan struct{}, workers)
	for range workers {
		go func() {
			defer func() { done <- struct{}{} }()
			for {
				key, shutdown := queue.Get()
				if shutdown {
					return
				}
				if err := sync(ctx, key); err != nil && ctx.Err() == nil {
					klog.ErrorS(err, "trying again", "object", key)
					queue.AddRateLimited(key)
				} else {
					queue.Forget(key)
				}
				queue.Done(key)
			}
		}()
	}
	<-ctx.Done()
	queue.ShutDown()
	for range workers {
		<-done
	}
	return nil
}
