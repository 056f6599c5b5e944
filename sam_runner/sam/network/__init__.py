"""What a step has to know of any network: its buffers, its trained parameters and the memory of their gradients."""
