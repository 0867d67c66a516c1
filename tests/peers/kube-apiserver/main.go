// The kube-apiserver of the Kubernetes project, as a program that tests start.
//
// There is no cluster on a machine that builds Sluice, and none is needed: what discovery talks to is
// this one server. Its main package lies in a module that nobody can `go install`, because its go.mod
// states its siblings at v0.0.0; this module names their real versions.
package main

import (
	"os"

	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	"k8s.io/kubernetes/cmd/kube-apiserver/app"
)

func main() {
	os.Exit(cli.Run(app.NewAPIServerCommand()))
}
