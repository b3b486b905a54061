"""Stage 1: embeddings, hidden states and SAE activations of every token."""
