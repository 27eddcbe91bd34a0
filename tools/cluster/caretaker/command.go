// Package caretaker does in a test cluster what a cloud or a kubelet would do elsewhere: it keeps
// fake nodes alive, runs the pods that are bound to them in name only, and gives Services of type
// LoadBalancer an address. It holds no state of its own: everything is read back from the API.
package caretaker

import (
	"context"
	"fmt"
	"net/netip"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// requestsPerSecond bounds what the caretaker asks of the API server. Its work is bursts of small
// patches: a rollout of some thousand fake pods should wait for the server and not for this limit.
const requestsPerSecond = 2000

type options struct {
	kubeconfig        string
	fakeNodes         int
	fakeNodePrefix    string
	fakePodCIDR       string
	loadBalancerCIDR  string
	heartbeatInterval time.Duration
}

// NewCommand makes the command line.
func NewCommand() *cobra.Command {
	var o options
	command := &cobra.Command{
		Use:           "caretaker",
		Short:         "Fake nodes, fake pods and load balancer addresses for a test cluster",
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: false,
		RunE: func(command *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(command.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			return o.run(ctx)
		},
	}
	flags := command.Flags()
	flags.StringVar(&o.kubeconfig, "kubeconfig", "", "how to reach the API server as a cluster administrator")
	flags.IntVar(&o.fakeNodes, "fake-nodes", 0, "how many nodes without a kubelet to keep Ready")
	flags.StringVar(&o.fakeNodePrefix, "fake-node-prefix", "node-", "name of a fake node without its number")
	flags.StringVar(&o.fakePodCIDR, "fake-pod-cidr", "", "addresses for pods on fake nodes")
	flags.StringVar(&o.loadBalancerCIDR, "load-balancer-cidr", "", "addresses for Services of type LoadBalancer; none: they stay pending")
	flags.DurationVar(&o.heartbeatInterval, "heartbeat-interval", 10*time.Second, "time between two renewals of a fake node's lease")
	_ = command.MarkFlagRequired("kubeconfig")
	return command
}

func (o options) run(ctx context.Context) error {
	config, err := clientcmd.BuildConfigFromFlags("", o.kubeconfig)
	if err != nil {
		return fmt.Errorf("reading %s: %w", o.kubeconfig, err)
	}
	config.QPS = requestsPerSecond
	config.Burst = requestsPerSecond
	config.ContentType = "application/vnd.kubernetes.protobuf"
	client, err := kubernetes.NewForConfig(rest.AddUserAgent(config, "caretaker"))
	if err != nil {
		return err
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	group, ctx := errgroup.WithContext(ctx)
	var starts []func(context.Context) error

	if o.fakeNodes > 0 {
		addresses, err := parsePool("--fake-pod-cidr", o.fakePodCIDR)
		if err != nil {
			return err
		}
		nodes := &fakeNodes{client: client, names: nodeNames(o.fakeNodePrefix, o.fakeNodes), interval: o.heartbeatInterval}
		pods := newFakePods(client, factory, nodes, addresses)
		starts = append(starts, nodes.run, pods.run)
	}
	if o.loadBalancerCIDR != "" {
		addresses, err := parsePool("--load-balancer-cidr", o.loadBalancerCIDR)
		if err != nil {
			return err
		}
		starts = append(starts, newLoadBalancers(client, factory, addresses).run)
	}
	if len(starts) == 0 {
		return fmt.Errorf("nothing to do: give --fake-nodes or --load-balancer-cidr")
	}
	factory.Start(ctx.Done())
	for _, start := range starts {
		group.Go(func() error { return start(ctx) })
	}
	return group.Wait()
}

func parsePool(flag, text string) (*pool, error) {
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	return newPool(prefix), nil
}

func nodeNames(prefix string, count int) []string {
	names := make([]string, count)
	for i := range names {
		names[i] = fmt.Sprintf("%s%d", prefix, i+1)
	}
	return names
}
