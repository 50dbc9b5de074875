#!/usr/bin/env bash
# Two processes on one machine: benchmarks/launch/two_processes.sh train influenza_1978 --steps 1000
set -euo pipefail
export JAX_COORDINATOR_ADDRESS=${JAX_COORDINATOR_ADDRESS:-127.0.0.1:8476} JAX_NUM_PROCESSES=2
JAX_PROCESS_ID=1 sgjax "$@" &
other=$!
trap 'kill $other 2>/dev/null || true' EXIT
JAX_PROCESS_ID=0 sgjax "$@"
wait $other
