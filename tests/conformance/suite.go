// Package conformance holds no code: it pins the upstream suite and the programs that its images are made of, so that
// one `go.sum` covers them. `cargo xtask conformance` builds them from here.
package conformance

import (
	_ "k8s.io/kubernetes/test/e2e"
)
