//go:build pins

// Package pins keeps versions in go.mod of what is built from other modules but imported by nothing here.
package pins

import _ "sigs.k8s.io/gateway-api-inference-extension/conformance"
