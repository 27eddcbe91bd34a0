//go:build tools

// Package tools names what is built from this module by its path alone, so that the module keeps
// what that needs.
package tools

import _ "sigs.k8s.io/gateway-api/conformance"
