"""Where model files come from and how they are opened: names, downloads with checked hashes, GGUF and safetensors.

The hub hands out bytes and what the file says about them; what a tensor means is the business of `qwenstack.models`.
"""
