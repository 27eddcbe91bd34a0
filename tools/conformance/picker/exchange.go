package main

import (
	"errors"
	"io"
	"strconv"
	"strings"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	extproc "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	envoytype "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
)

// Names of the endpoint picker protocol.
const (
	destination     = "x-gateway-destination-endpoint"
	served          = "x-gateway-destination-endpoint-served"
	loadBalancer    = "envoy.lb"
	subsetNamespace = "envoy.lb.subset_hint"
	subset          = "x-gateway-destination-endpoint-subset"
)

// Headers by which a test says what it wants.
const (
	// An address, or several in order, with or without ports.
	selectionHeader = "test-epp-endpoint-selection"
	// A status that the picker answers with by itself, such as 429.
	refusalHeader = "test-picker-refusal"
	// The content type of that answer; without it the answer has none.
	refusalTypeHeader = "test-picker-refusal-type"
	// `headers`: answer before the body is there. Otherwise when it is, as pickers that read it do.
	momentHeader = "test-picker-moment"
	// What the served endpoint is told to the test in.
	reportHeader = "x-conformance-test-served-endpoint"
)

// chunkBytes is what a piece of a body has at most on its way back, as that of other pickers.
const chunkBytes = 62_000

type server struct {
	extproc.UnimplementedExternalProcessorServer
	pool *pool
}

// Process serves one request and its response.
func (s *server) Process(stream extproc.ExternalProcessor_ProcessServer) error {
	exchange := exchange{pool: s.pool}
	for {
		request, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		replies, err := exchange.take(request)
		if err != nil {
			return err
		}
		for _, reply := range replies {
			if err := stream.Send(reply); err != nil {
				return err
			}
		}
		if exchange.over {
			return nil
		}
	}
}

// exchange is what is known of one request.
type exchange struct {
	pool *pool
	// What was asked for, and which endpoints are allowed; nil allows all.
	selection string
	allowed   []string
	refusal   int
	// The content type of the refusal.
	refusalType string
	early       bool
	// The header of the answer has been sent.
	answered bool
	// What is held of the body until the answer.
	body []byte
	// The request was refused, and nothing follows.
	over bool
}

// take is one step: a message of the gateway to the messages that answer it.
func (x *exchange) take(request *extproc.ProcessingRequest) ([]*extproc.ProcessingResponse, error) {
	switch message := request.Request.(type) {
	case *extproc.ProcessingRequest_RequestHeaders:
		x.readHeaders(message.RequestHeaders.GetHeaders())
		x.allowed = allowed(request.GetMetadataContext())
		if message.RequestHeaders.GetEndOfStream() || x.early {
			return x.answer(), nil
		}
		return nil, nil
	case *extproc.ProcessingRequest_RequestBody:
		return x.takeBody(message.RequestBody), nil
	case *extproc.ProcessingRequest_RequestTrailers:
		replies := append(x.answer(), x.bodyBack(false)...)
		if x.over {
			return replies, nil
		}
		return append(replies, &extproc.ProcessingResponse{
			Response: &extproc.ProcessingResponse_RequestTrailers{RequestTrailers: &extproc.TrailersResponse{}},
		}), nil
	case *extproc.ProcessingRequest_ResponseHeaders:
		return []*extproc.ProcessingResponse{report(request.GetMetadataContext())}, nil
	case *extproc.ProcessingRequest_ResponseBody:
		body := message.ResponseBody
		return pieces(body.GetBody(), body.GetEndOfStream(), responseBody), nil
	case *extproc.ProcessingRequest_ResponseTrailers:
		return []*extproc.ProcessingResponse{{
			Response: &extproc.ProcessingResponse_ResponseTrailers{ResponseTrailers: &extproc.TrailersResponse{}},
		}}, nil
	default:
		return nil, status.Errorf(codes.InvalidArgument, "a message that is not known: %T", message)
	}
}

func (x *exchange) readHeaders(headers *core.HeaderMap) {
	for _, header := range headers.GetHeaders() {
		value := header.GetValue()
		if raw := header.GetRawValue(); len(raw) > 0 {
			value = string(raw)
		}
		switch strings.ToLower(header.GetKey()) {
		case selectionHeader:
			x.selection = value
		case refusalHeader:
			// A value that is no number refuses nothing.
			x.refusal, _ = strconv.Atoi(value)
		case refusalTypeHeader:
			x.refusalType = value
		case momentHeader:
			x.early = value == "headers"
		}
	}
}

func (x *exchange) takeBody(body *extproc.HttpBody) []*extproc.ProcessingResponse {
	if len(x.body)+len(body.GetBody()) > bodyBytesMax {
		x.over = true
		return []*extproc.ProcessingResponse{immediate(413, "", "larger than the picker holds")}
	}
	x.body = append(x.body, body.GetBody()...)
	if x.answered {
		return x.bodyBack(body.GetEndOfStream())
	}
	if !body.GetEndOfStream() {
		return nil
	}
	replies := x.answer()
	if x.over {
		return replies
	}
	return append(replies, x.bodyBack(true)...)
}

// answer says where the request goes, once.
func (x *exchange) answer() []*extproc.ProcessingResponse {
	if x.answered || x.over {
		return nil
	}
	x.answered = true
	if x.refusal != 0 {
		x.over = true
		return []*extproc.ProcessingResponse{immediate(x.refusal, x.refusalType, "refused by the picker")}
	}
	endpoints := x.endpoints()
	if endpoints == "" {
		x.over = true
		return []*extproc.ProcessingResponse{immediate(503, "", "no endpoint is ready")}
	}
	metadata := &structpb.Struct{Fields: map[string]*structpb.Value{
		loadBalancer: structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{
			destination: structpb.NewStringValue(endpoints),
		}}),
	}}
	return []*extproc.ProcessingResponse{{
		DynamicMetadata: metadata,
		Response: &extproc.ProcessingResponse_RequestHeaders{RequestHeaders: &extproc.HeadersResponse{
			Response: &extproc.CommonResponse{
				ClearRouteCache: true,
				HeaderMutation:  set(destination, endpoints),
			},
		}},
	}}
}

func (x *exchange) endpoints() string {
	if x.selection == "" {
		return x.pool.next(x.allowed)
	}
	var all []string
	for address := range strings.SplitSeq(x.selection, ",") {
		all = append(all, x.pool.complete(strings.TrimSpace(address)))
	}
	return strings.Join(all, ",")
}

// bodyBack gives back what is held of the request's body.
func (x *exchange) bodyBack(end bool) []*extproc.ProcessingResponse {
	if x.over || (len(x.body) == 0 && !end) {
		return nil
	}
	body := x.body
	x.body = nil
	return pieces(body, end, requestBody)
}

// allowed reads the hint about a subset, which is a list or a text; nil if there is none.
func allowed(metadata *core.Metadata) []string {
	hint := metadata.GetFilterMetadata()[subsetNamespace].GetFields()[subset]
	if hint == nil {
		return nil
	}
	endpoints := []string{}
	for _, value := range hint.GetListValue().GetValues() {
		endpoints = append(endpoints, value.GetStringValue())
	}
	if text := hint.GetStringValue(); text != "" {
		endpoints = append(endpoints, strings.Split(text, ",")...)
	}
	return endpoints
}

// report tells the test in a header which endpoint the gateway says has served.
func report(metadata *core.Metadata) *extproc.ProcessingResponse {
	response := &extproc.CommonResponse{}
	endpoint := metadata.GetFilterMetadata()[loadBalancer].GetFields()[served].GetStringValue()
	if endpoint != "" {
		response.HeaderMutation = set(reportHeader, endpoint)
	}
	return &extproc.ProcessingResponse{
		Response: &extproc.ProcessingResponse_ResponseHeaders{
			ResponseHeaders: &extproc.HeadersResponse{Response: response},
		},
	}
}

func set(name, value string) *extproc.HeaderMutation {
	return &extproc.HeaderMutation{SetHeaders: []*core.HeaderValueOption{{
		Header:       &core.HeaderValue{Key: name, RawValue: []byte(value)},
		AppendAction: core.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
	}}}
}

func immediate(code int, contentType, body string) *extproc.ProcessingResponse {
	headers := set("x-picker-refusal", strconv.Itoa(code))
	if contentType != "" {
		headers.SetHeaders = append(headers.SetHeaders, set("content-type", contentType).SetHeaders...)
	}
	return &extproc.ProcessingResponse{
		Response: &extproc.ProcessingResponse_ImmediateResponse{ImmediateResponse: &extproc.ImmediateResponse{
			Status:  &envoytype.HttpStatus{Code: envoytype.StatusCode(code)},
			Headers: headers,
			Body:    []byte(body),
			Details: "picker",
		}},
	}
}

// pieces cuts a body into messages of a bounded size; the last one ends the body if `end` says so.
func pieces(body []byte, end bool, wrap func(*extproc.BodyResponse) *extproc.ProcessingResponse) []*extproc.ProcessingResponse {
	var all []*extproc.ProcessingResponse
	for {
		piece := body[:min(chunkBytes, len(body))]
		body = body[len(piece):]
		mutation := &extproc.BodyMutation{Mutation: &extproc.BodyMutation_StreamedResponse{
			StreamedResponse: &extproc.StreamedBodyResponse{Body: piece, EndOfStream: end && len(body) == 0},
		}}
		all = append(all, wrap(&extproc.BodyResponse{Response: &extproc.CommonResponse{BodyMutation: mutation}}))
		if len(body) == 0 {
			return all
		}
	}
}

func requestBody(body *extproc.BodyResponse) *extproc.ProcessingResponse {
	return &extproc.ProcessingResponse{Response: &extproc.ProcessingResponse_RequestBody{RequestBody: body}}
}

func responseBody(body *extproc.BodyResponse) *extproc.ProcessingResponse {
	return &extproc.ProcessingResponse{Response: &extproc.ProcessingResponse_ResponseBody{ResponseBody: body}}
}
