# The chroot in which images are assembled.
# needs:
# inputs: images/debian images/packages/tools
# shared: yes
images/debian minbase "$(dpkg --print-architecture)" "$OUT/tools" images/packages/tools
