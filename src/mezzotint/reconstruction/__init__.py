"""Fine-grained block reconstruction (FBR): unit by unit, learn the rounding of the weights and the activation steps."""
