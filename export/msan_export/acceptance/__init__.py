"""The acceptance test of a conversion: is the converted network still the network?"""
