#!/usr/bin/env bash
# Run a configuration as a Ray job. With a cluster of your own, set RAY_API_SERVER_ADDRESS (http://HEAD:8265) and leave out
# the first two commands; this file starts a one-node cluster on this machine, so that the sequence can be tried anywhere.
#
#     bash examples/submit.sh examples/quickstart.toml
set -euo pipefail
config=${1:?give a TOML file}
export RAY_AUTH_MODE=token                                   # Ray's token authentication, for head, driver and commands
[ -f ~/.ray/auth_token ] || ray get-auth-token --generate >/dev/null
ray start --head --num-cpus=8 --dashboard-port=8265 --disable-usage-stats
export RAY_API_SERVER_ADDRESS=http://127.0.0.1:8265
ray job submit -- ray-align run "$PWD/$config"
