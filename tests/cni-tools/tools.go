//go:build tools

// Package tools pins what other projects call CNI plugins with, and plugins that are called beside ours.
package tools

import (
	_ "github.com/containernetworking/cni/cnitool"
	_ "github.com/containernetworking/plugins/plugins/ipam/host-local"
	_ "github.com/containernetworking/plugins/plugins/meta/bandwidth"
)
