// Command gocni calls CNI plugins by the library that containerd, nerdctl and Nomad call them by.
//
//	gocni -conf DIR -bin DIR VERB CONTAINER NETNS [PORTS]
//
// VERB is status, add, check or del; PORTS is what the runtime asks for, as JSON: a list of port mappings, or null. Like
// containerd it has loopback set up before the network of the configuration; check leaves that out, whose configuration in the
// library has a version without CHECK.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"

	gocni "github.com/containerd/go-cni"
)

func main() {
	conf := flag.String("conf", "", "directory of configurations")
	bin := flag.String("bin", "", "directory of plugins")
	flag.Parse()
	if err := run(*conf, *bin, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(conf, bin string, arguments []string) error {
	if len(arguments) < 3 {
		return fmt.Errorf("usage: gocni -conf DIR -bin DIR VERB CONTAINER NETNS [PORTS]")
	}
	verb, container, netns := arguments[0], arguments[1], arguments[2]
	networks, load := 2, []gocni.Opt{gocni.WithLoNetwork, gocni.WithDefaultConf}
	if verb == "check" {
		networks, load = 1, load[1:]
	}
	library, err := gocni.New(
		gocni.WithMinNetworkCount(networks),
		gocni.WithPluginConfDir(conf),
		gocni.WithPluginDir([]string{bin}),
		gocni.WithInterfacePrefix("eth"),
	)
	if err != nil {
		return err
	}
	if err := library.Load(load...); err != nil {
		return fmt.Errorf("load: %w", err)
	}
	// What containerd says of each pod.
	options := []gocni.NamespaceOpts{gocni.WithLabels(map[string]string{
		"K8S_POD_NAMESPACE":          "default",
		"K8S_POD_NAME":               "web",
		"K8S_POD_INFRA_CONTAINER_ID": container,
		"K8S_POD_UID":                "0c2d",
		"IgnoreUnknown":              "1",
	})}
	if len(arguments) > 3 {
		// The type has no tags: what plugins are given is spelled as its fields are.
		var ports []gocni.PortMapping
		if err := json.Unmarshal([]byte(arguments[3]), &ports); err != nil {
			return fmt.Errorf("port mappings: %w", err)
		}
		options = append(options, gocni.WithCapabilityPortMap(ports))
	}
	ctx := context.Background()
	switch verb {
	case "status":
		return library.Status()
	case "add":
		result, err := library.Setup(ctx, container, netns, options...)
		if err != nil {
			return err
		}
		return json.NewEncoder(os.Stdout).Encode(result)
	case "check":
		return library.Check(ctx, container, netns, options...)
	case "del":
		return library.Remove(ctx, container, netns, options...)
	}
	return fmt.Errorf("no verb %q", verb)
}
