"""The devices that a bundle can be built for, one module each."""
