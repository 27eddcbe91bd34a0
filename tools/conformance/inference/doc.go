// Package inference is Forebay's own suite of tests for gateways that serve InferencePools. It stands on
// the public utilities of the Gateway API's conformance suite, and asks for what the Inference
// Extension's protocol and API say.
//
// It is not the public conformance suite of the Inference Extension, and a gateway that passes it has no
// conformance report. It covers in its own words what that suite checks, and what that one leaves out:
// both failure modes with the pool's own picker down, fallback in order, refusals by the picker, streams,
// large bodies and trailers.
package inference
