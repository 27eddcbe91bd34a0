// Command picker is a small endpoint picker to test gateways with: it speaks external processing in
// full-duplex streaming mode, and sends requests where a header of the test says, or to the ready
// pods of a pool in turn.
//
// It is no picker for use: it knows nothing of load, and any client may tell it where to send.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"log"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	extproc "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// bodyBytesMax bounds what is held of one request. A larger body is answered with 413.
const bodyBytesMax = 16 << 20

func main() {
	selector := flag.String("selector", "", "labels of the pool's pods, as key=value,...")
	ports := flag.String("ports", "3000", "ports of the pool, as number,...")
	listen := flag.String("listen", ":9002", "address of the picker itself, with TLS")
	healthListen := flag.String("health-listen", ":9003", "address of the health service, without TLS")
	flag.Parse()
	if err := run(*selector, *ports, *listen, *healthListen); err != nil {
		log.Fatal(err)
	}
}

func run(selector, ports, listen, healthListen string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	numbers, err := portNumbers(ports)
	if err != nil {
		return err
	}
	pool, err := newPool(os.Getenv("NAMESPACE"), selector, numbers)
	if err != nil {
		return err
	}
	go pool.follow(ctx, time.Second)

	certificate, err := selfSigned()
	if err != nil {
		return err
	}
	config := &tls.Config{Certificates: []tls.Certificate{certificate}}
	picker := grpc.NewServer(grpc.Creds(credentials.NewTLS(config)))
	extproc.RegisterExternalProcessorServer(picker, &server{pool: pool})

	status := health.NewServer()
	for _, service := range []string{"liveness", "readiness", extproc.ExternalProcessor_ServiceDesc.ServiceName} {
		status.SetServingStatus(service, healthpb.HealthCheckResponse_SERVING)
	}
	checks := grpc.NewServer()
	healthpb.RegisterHealthServer(checks, status)

	failed := make(chan error, 2)
	go func() { failed <- serve(picker, listen) }()
	go func() { failed <- serve(checks, healthListen) }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		// A picker that goes away in a test goes at once.
		picker.Stop()
		checks.Stop()
		return nil
	}
}

func serve(server *grpc.Server, address string) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	log.Printf("listening on %s", listener.Addr())
	return server.Serve(listener)
}

func portNumbers(text string) ([]int, error) {
	var numbers []int
	for part := range strings.SplitSeq(text, ",") {
		number, err := strconv.Atoi(strings.TrimSpace(part))
		if err != nil || number < 1 || number > 65535 {
			return nil, errors.New("--ports: " + strconv.Quote(part) + " is no port")
		}
		numbers = append(numbers, number)
	}
	return numbers, nil
}
