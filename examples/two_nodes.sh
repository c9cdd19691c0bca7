#!/usr/bin/env bash
# Two Ray nodes on this machine, one for the reference pool and one for training, and a job that uses both. It is stopped
# half-way, and submitted again: it goes on from its last checkpoint.
#
#     bash examples/two_nodes.sh FOLDER [section.field=value ...]     # FOLDER: for data, run and workspace
set -euo pipefail
folder=$(mkdir -p "${1:?give a folder}" && cd "$1" && pwd)
shift
here=$(cd "$(dirname "$0")/.." && pwd)
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
[ -f ~/.ray/auth_token ] || ray get-auth-token --generate > /dev/null
port=${RAY_PORT:-6390} dashboard=${RAY_DASHBOARD_PORT:-8275}
export RAY_API_SERVER_ADDRESS=http://127.0.0.1:$dashboard

pids=()
cleanup() { for pid in "${pids[@]}"; do kill "$pid" 2> /dev/null || true; done; wait; }
trap cleanup EXIT
ray start --head --block --port="$port" --dashboard-port="$dashboard" --num-cpus=2 --resources='{"trainer": 2}' \
    --object-store-memory=300000000 --temp-dir="${RAY_TEMP:-/tmp/ray_align_two_nodes}" > "$folder/head.log" 2>&1 &
pids+=($!)
until ray job list > /dev/null 2>&1; do
    kill -0 "${pids[0]}" || { cat "$folder/head.log"; exit 1; }
    sleep 1
done
ray start --address="127.0.0.1:$port" --block --num-cpus=3 --resources='{"scorer": 2}' --object-store-memory=300000000 \
    --min-worker-port=0 --max-worker-port=0 --dashboard-agent-listen-port=0 > "$folder/node.log" 2>&1 &
pids+=($!)

python "$here/examples/make_data.py" "$folder/data"
submit() {
    ray job submit "$@" -- ray-align run "$here/examples/quickstart.toml" \
        run.name=two-nodes run.dir="$folder/runs" run.workspace="$folder/workspace" data.train="$folder/data/train.jsonl" \
        data.eval="$folder/data/eval.jsonl" cluster.workers=2 cluster.cpus_per_worker=1 "cluster.resources={trainer=1}" \
        reference.actors=2 "reference.resources={scorer=1}" "${overrides[@]}"
}
overrides=("$@" train.checkpoint_steps=5)
submit --no-wait --submission-id first > /dev/null
checkpoints=$folder/runs/two-nodes/checkpoints
until ls "$checkpoints"/*/manifest.json > /dev/null 2>&1; do
    [[ $(ray job status first 2>&1) =~ FAILED|SUCCEEDED ]] && { ray job logs first; exit 1; }
    sleep 1
done
ray job stop first
submit --submission-id second
echo "attempts, and the steps that they went on from:"
cat "$checkpoints/attempts.jsonl"
