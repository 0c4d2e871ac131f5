"""Laws of the image builder's core: whatever the inputs, these hold."""
