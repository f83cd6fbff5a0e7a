#!/bin/sh
# vLLM 0.33.0, by headway: a 70B model on eight H100
# mixed-0 on 127.0.0.1
# model: meta-llama/Llama-3.1-70B is where the architecture was read; --model-path names others, as one for chat
# cap_watts, clock_mhz: set by nvidia-smi on the host, which needs root; no engine sets them
set -e
sudo nvidia-smi -i 0,1,2,3 -pl 600
export CUDA_VISIBLE_DEVICES=0,1,2,3
exec vllm serve meta-llama/Llama-3.1-70B \
  --served-model-name llama-3.1-70b \
  --host 0.0.0.0 \
  --port 8000 \
  --tensor-parallel-size 4 \
  --pipeline-parallel-size 1 \
  --quantization fp8 \
  --kv-cache-dtype fp8 \
  --block-size 16 \
  --gpu-memory-utilization 0.9 \
  --max-num-batched-tokens 8192 \
  --max-num-seqs 256 \
  --enable-prefix-caching
