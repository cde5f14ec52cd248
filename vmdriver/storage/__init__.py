"""Files: where they are, records, journals, disks, the seed. Knows no libvirt, no
network, no OCI.
"""
