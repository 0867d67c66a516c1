#!/usr/bin/env bash
# Builds the servers of others that tests talk to: kube-apiserver, the etcd it keeps its objects in, and moto.
#
# A fake shows what its author thought of; these show what others do. They are Go modules and a Python
# package (tests/peers), built once into a cache outside the clone, because they take minutes and change
# only with their version. Safe to repeat: what is there is left alone. A machine without Go or Python
# goes without them: that is said here, and by each test that would have used them.
set -euo pipefail
cd "$(dirname "$0")/.."

cache=${XDG_CACHE_HOME:-$HOME/.cache}/sluice/peers

say() {
    echo "peers: $*"
}

# The version of a module that go.mod requires, which is the only place where it stands.
required() {
    sed -n "s|^[[:space:]]*\(require \)\?$2 \(v[0-9][^ ]*\).*|\2|p" "tests/peers/$1/go.mod" | head -n 1
}

# Name, module that its version is the version of, why it is wanted, how long it takes, linker flags.
build() {
    local name=$1 module=$2 why=$3 long=$4 flags=${5-} version target
    version=$(required "$name" "$module")
    target=$cache/$name-$version
    if [ -x "$target" ]; then
        return
    fi
    if ! command -v go >/dev/null; then
        say "SKIPPED: $name $version: Go is not installed: get 1.26 or newer from https://go.dev/dl"
        return
    fi
    say "building $name $version: $why ($long on two cores)"
    mkdir -p "$cache"
    # Under another name until it is whole: an interrupted build leaves nothing that looks built.
    CGO_ENABLED=0 go -C "tests/peers/$name" build -mod=readonly -trimpath -buildvcs=false \
        -ldflags "-s -w ${flags//VERSION/$version}" -o "$target.partial" .
    mv "$target.partial" "$target"
    changed=yes
}

# The one that is no Go module: an environment of its own, in which nothing else has a say.
build_moto() {
    local version target responses
    version=$(sed -n 's/^moto==//p' tests/peers/moto/requirements.txt)
    target=$cache/moto-$version
    if [ -x "$target/run" ]; then
        return
    fi
    if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
        say "SKIPPED: moto $version: Python 3.10 or newer with its module venv is not installed"
        return
    fi
    say "installing moto $version: discovery is tested against an AWS that others wrote (a minute)"
    rm -rf "$target"
    mkdir -p "$cache"
    python3 -m venv "$target"
    "$target/bin/pip" install --quiet --no-deps --requirement tests/peers/moto/requirements.txt
    # Where it is not what AWS writes, and clients that are stricter than Python's take nothing else.
    responses=$(echo "$target"/lib/python3*/site-packages/moto/ec2/responses)
    sed -i 's|>False</requesterManaged>|>false</requesterManaged>|' "$responses/elastic_network_interfaces.py"
    sed -i 's|\(default[A-Z][a-z]*RouteTable>{{ [a-z_.]*\) }}|\1 \| lower }}|' "$responses/transit_gateway_route_tables.py"
    sed -i 's|<\(/\?DescribeTransitGatewayPeeringAttachments\)\b|<\1Response|' "$responses/transit_gateway_attachments.py"
    # Last, so that an interrupted installation leaves nothing that looks whole.
    printf '#!/bin/sh\nexec "%s/bin/python" -m moto.server "$@"\n' "$target" >"$target/run.partial"
    chmod +x "$target/run.partial"
    mv "$target/run.partial" "$target/run"
    changed=yes
}

case "$#:${1-}" in
0:) ;;
1:--help | 1:-h)
    echo "usage: scripts/peers.sh"
    echo "Builds kube-apiserver, etcd and moto, which tests start, into $cache."
    exit
    ;;
*)
    echo "peers: expected nothing, not: $*" >&2
    exit 2
    ;;
esac
changed=no
build etcd go.etcd.io/etcd/server/v3 "kube-apiserver keeps its objects in it" "45 s"
# Unless it is told, the server thinks it is v0.0.0 and takes gates and API versions for that.
version_package=k8s.io/component-base/version
build kube-apiserver k8s.io/kubernetes "discovery is tested against the real API server" "5 minutes" \
    "-X $version_package.gitVersion=VERSION -X $version_package.gitMajor=1 -X $version_package.gitMinor=36"
build_moto
if [ "$changed" = yes ]; then
    say "built into $cache"
fi
