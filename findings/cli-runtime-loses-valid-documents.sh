#!/bin/bash
# k8s.io/cli-runtime v0.37.2, the reader of `kubectl apply -f FILE`: of two valid streams it reads the
# first object, drops the second, and reports no error.
#  1. YAML: a document behind the end marker `...` (YAML 1.2, 9.1.4: what follows needs no `---`).
#  2. A `---` line and behind it two JSON objects, one a line. Without the `---` it reads both.
# So `kubectl apply` exits with 0 and applies half of the file. Seen with Go 1.26.8, cli-runtime v0.37.2:
#   end-marker.yaml: Service/a, no error
#   json-behind-marker.yaml: Service/a, no error
#   json.yaml: Service/a Service/b, no error
# Needs Go 1.26 and the Go module proxy. Fails when the behaviour changes.
set -euo pipefail
work=$(mktemp -d)
trap 'chmod -R u+w "$work"; rm -rf "$work"' EXIT
cd "$work"

cat > go.mod <<'MOD'
module finding

go 1.26.0

require k8s.io/cli-runtime v0.37.2
MOD
cat > main.go <<'GO'
package main

import (
	"fmt"
	"os"

	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/resource"
)

func main() {
	for _, file := range os.Args[1:] {
		infos, err := resource.NewBuilder(genericclioptions.NewConfigFlags(false)).
			Unstructured().Local().ContinueOnError().
			FilenameParam(false, &resource.FilenameOptions{Filenames: []string{file}}).
			Flatten().Do().Infos()
		fmt.Print(file, ":")
		for _, info := range infos {
			fmt.Print(" ", info.Object.GetObjectKind().GroupVersionKind().Kind, "/", info.Name)
		}
		if err == nil {
			fmt.Println(", no error")
		} else {
			fmt.Println(", error:", err)
		}
	}
}
GO
GOFLAGS=-mod=mod GOTOOLCHAIN=local go build -o reader . 2>/dev/null

json() { echo "{\"apiVersion\":\"v1\",\"kind\":\"Service\",\"metadata\":{\"name\":\"$1\"}}"; }
yaml() { printf 'apiVersion: v1\nkind: Service\nmetadata: {name: %s}\n' "$1"; }
{ yaml a; echo ...; yaml b; } > end-marker.yaml
{ echo ---; json a; json b; } > json-behind-marker.yaml
{ json a; json b; } > json.yaml

./reader end-marker.yaml json-behind-marker.yaml json.yaml | tee seen
diff - seen <<'EXPECTED'
end-marker.yaml: Service/a, no error
json-behind-marker.yaml: Service/a, no error
json.yaml: Service/a Service/b, no error
EXPECTED
