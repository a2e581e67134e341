// What kubectl's builder (k8s.io/cli-runtime) reads in files: `go run . FILE...`. Its answers of version 0.37.2 are in
// proxy-userspace/tests/inputs/kubectl.json, which a test compares with what Sluice reads.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/resource"
	discovery "k8s.io/api/discovery/v1"
	core "k8s.io/api/core/v1"
)

func main() {
	for _, path := range os.Args[1:] {
		result := resource.NewBuilder(genericclioptions.NewConfigFlags(false)).
			Unstructured().Local().ContinueOnError().
			FilenameParam(false, &resource.FilenameOptions{Filenames: []string{path}}).
			Flatten().Do()
		fmt.Printf("== %s\n", path)
		err := result.Visit(func(info *resource.Info, err error) error {
			if err != nil {
				return err
			}
			u := info.Object.(*unstructured.Unstructured)
			extra := ""
			switch u.GetKind() {
			case "Service":
				var s core.Service
				if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &s); err != nil {
					extra = "typed: " + err.Error()
				} else {
					// As a client sends it and the API server reads it.
					b, _ := json.Marshal(u.Object["spec"])
					extra = string(b)
				}
			case "EndpointSlice":
				var s discovery.EndpointSlice
				if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &s); err != nil {
					extra = "typed: " + err.Error()
				}
			}
			fmt.Printf("%s %s/%s %s\n", u.GroupVersionKind().Kind, u.GetNamespace(), u.GetName(), extra)
			return nil
		})
		if err != nil {
			fmt.Printf("error: %v\n", err)
		}
	}
}
