#!/usr/bin/env python3
"""Writes tests/data/gradients/torch.json: losses and their gradients as torch has them in float64, two numbers a tensor.

usage: gradient_golden.py NAME=FOLDER... > tests/data/gradients/torch.json

FOLDER holds a Hugging Face model. Sequences are fixed: token i of the first is (i * i + 5) mod vocab, i < 40, of the second (11 i + 1) mod vocab, i < 7.
The loss is the mean cross-entropy over all predicted tokens; of each gradient its norm and its product with cos(0.1 i) are kept, i counted through it.
Newer transformers hold the experts of a mixture in one parameter; those are left out. Needs torch and transformers.
"""
import json
import sys

import torch
from transformers import AutoModelForCausalLM


def case(name, folder):
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float64, attn_implementation="eager").eval()
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    vocab = model.config.vocab_size
    sequences = [[(i * i + 5) % vocab for i in range(40)], [(11 * i + 1) % vocab for i in range(7)]]
    total, count = 0.0, 0
    for ids in sequences:
        logits = model(torch.tensor([ids]), use_cache=False).logits[0, :-1]
        total = total + torch.nn.functional.cross_entropy(logits.double(), torch.tensor(ids[1:]), reduction="sum")
        count += len(ids) - 1
    loss = total / count
    loss.backward()
    tensors = {}
    for key, parameter in model.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        if ".experts." in key:
            continue
        if model.config.model_type == "mixtral":
            key = key.replace(".mlp.gate.", ".block_sparse_moe.gate.")  # as in its checkpoints
        if model.config.model_type == "gpt_neox" and key == "lm_head.weight":
            key = "embed_out.weight"
        flat = gradient.double().flatten()
        wave = torch.cos(0.1 * torch.arange(flat.numel(), dtype=torch.float64))
        tensors[key] = [float(f"{float(x):.10g}") for x in (flat.norm(), flat @ wave)]
    return {"name": name, "loss": float(loss.detach()), "tensors": tensors}


if __name__ == "__main__":
    cases = [case(*argument.split("=", 1)) for argument in sys.argv[1:]]
    json.dump({"torch": torch.__version__, "cases": cases}, sys.stdout)
    print()
