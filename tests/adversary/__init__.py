"""The wall around a machine, attacked from where an attacker would be: as a guest's root, as an image, as code that has
escaped into a QEMU. What holds it is in the product; what must hold is here.
"""
