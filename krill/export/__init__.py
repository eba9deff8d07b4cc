"""Export of a trained model to the formats of other tools: a folder of Hugging Face, or a GGUF file of llama.cpp."""
