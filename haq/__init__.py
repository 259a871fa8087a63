"""HAQ: how many bits each layer of a network should have, on the hardware it will run on."""
