#!/bin/bash
# containerd's go-cni 1.1.13 with the reference plugins 1.9.1: after a Setup that succeeded, Check of the same
# pod always fails if the loopback network was loaded the way containerd loads it (WithLoNetwork).
# go-cni writes the configuration of that network itself, with cniVersion 0.3.1. CHECK came with 0.4.0, so
# libcni refuses to call any plugin of that list, and go-cni gives up at the first network, before it has looked
# at the pod's real one. The plugins are not at fault: `loopback` 1.9.1 has CHECK, and without
# WithLoNetwork the same Check of the same pod succeeds.
# A runtime that wants CHECK has to load a loopback list of its own, with cniVersion 0.4.0 or later.
# Seen:
#   WithLoNetwork:     Setup ok, Check fails: configuration version "0.3.1" does not support the CHECK command
#   own loopback 1.0.0: Setup ok, Check ok
# Needs root and Go. Works in network and mount namespaces of its own. Fails when that changes.
set -euo pipefail
script=$(realpath "$0")
export PATH=$PATH:/usr/local/go/bin
if [ "${1:-}" != inside ]; then
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  cd "$work"
  export GOFLAGS=-mod=mod
  go mod init finding >/dev/null 2>&1
  go get github.com/containerd/go-cni@v1.1.13 github.com/containernetworking/cni@v1.3.1 \
    github.com/containernetworking/plugins@v1.9.1 >/dev/null 2>&1
  cat >main.go <<'GO'
package main

import (
	"context"
	"fmt"
	"os"

	gocni "github.com/containerd/go-cni"
)

func main() {
	options := []gocni.Opt{gocni.WithConfListFile(os.Args[2])}
	if os.Args[1] == "with-lo" {
		options = append([]gocni.Opt{gocni.WithLoNetwork}, options...)
	} else {
		options = append([]gocni.Opt{gocni.WithConfListFile(os.Args[3])}, options...)
	}
	cni, err := gocni.New(gocni.WithPluginDir([]string{os.Getenv("PLUGINS")}), gocni.WithMinNetworkCount(2))
	if err == nil {
		err = cni.Load(options...)
	}
	if err != nil {
		fmt.Println("load:", err)
		os.Exit(2)
	}
	ctx, pod, netns := context.Background(), "pod-"+os.Args[1], os.Getenv("NETNS")
	_, err = cni.Setup(ctx, pod, netns)
	fmt.Println("Setup:", err)
	fmt.Println("Check:", cni.Check(ctx, pod, netns))
	fmt.Println("Remove:", cni.Remove(ctx, pod, netns))
}
GO
  mkdir plugins
  go build -o finding . >build.log 2>&1 || { cat build.log; exit 1; }
  for plugin in main/loopback main/ptp ipam/host-local; do
    go build -o plugins/ github.com/containernetworking/plugins/plugins/$plugin
  done
  cat >pods.conflist <<JSON
{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "ptp", "ipam":
  {"type": "host-local", "subnet": "10.77.0.0/24", "dataDir": "$work/addresses"}}]}
JSON
  echo '{"cniVersion": "1.0.0", "name": "lo", "plugins": [{"type": "loopback"}]}' >lo.conflist
  PLUGINS=$work/plugins unshare --net --mount "$script" inside "$work" | tee seen
  exit "${PIPESTATUS[0]}"
fi
cd "$2"
mount -t tmpfs none /run
# libcni keeps results under /var/lib/cni.
mount -t tmpfs none /var/lib
ip link set lo up
ip netns add pod
export NETNS=/run/netns/pod
./finding with-lo pods.conflist >with-lo
./finding own-lo pods.conflist lo.conflist >own-lo
for run in with-lo own-lo; do sed "s/^/$run: /" $run; done
grep -q '^Setup: <nil>' with-lo && grep -q '^Check: .*0\.3\.1.*CHECK' with-lo
grep -q '^Setup: <nil>' own-lo && grep -q '^Check: <nil>' own-lo
