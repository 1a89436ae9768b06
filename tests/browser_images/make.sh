#!/bin/sh
# Makes the images of the browser's read tests again, with QEMU's tools, and what each must read as, by `qemu-img convert`.
# A browser has no qemu-img, so these few are kept: NAME.qcow2.gz and NAME.raw.gz (the guest's bytes), some KiB each.
set -eu
cd "$(dirname "$0")"
rm -f ./*.gz
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
here=$PWD
cd "$tmp"

# Bytes that compress, and of which no two pieces are the same; and bytes that do not compress.
seq -f 'line %09.0f of a text that goes on and on, of which no two pieces are the same ......................' 1 20000 | head -c 1048576 > text
seq 1 40000 | openssl enc -aes-128-ctr -K 0 -iv 0 2> /dev/null | head -c 4096 > noise

io() { image=$1; shift; for c in "$@"; do set -- "$@" -c "$c"; shift; done; qemu-io -f qcow2 "$@" "$image" > io.log || { cat io.log; exit 1; }; }
# keep NAME [convert options]: the image NAME.qcow2 and what it reads as
keep() {
    name=$1; shift
    qemu-img convert -f qcow2 -O raw "$@" "$name.qcow2" "$name.raw"
    gzip -9n < "$name.qcow2" > "$here/$name.qcow2.gz"
    gzip -9n < "$name.raw" > "$here/$name.raw.gz"
}
create() { qemu-img create -q -f qcow2 "$@"; }

create -o compat=0.10,cluster_size=512 v2_small_clusters.qcow2 300k
io v2_small_clusters.qcow2 'write -s text 0 70k' 'write -P 7 100k 1k' 'write -s noise 299k 1k' 'write -z 10k 3k'
keep v2_small_clusters

create -o compat=1.1,refcount_bits=1,cluster_size=65536 v3_zeros.qcow2 1536k
io v3_zeros.qcow2 'write -s text 0 300k' 'write -z 65536 65536' 'write -zu 131072 65536' 'write -P 5 1400000 5000' 'discard 262144 65536'
keep v3_zeros

create -o cluster_size=1M v3_large_clusters.qcow2 3000k
io v3_large_clusters.qcow2 'write -P 1 0 10k' 'write -s text 2500000 4000'
keep v3_large_clusters

create -o extended_l2=on,cluster_size=65536 subclusters.qcow2 1M
io subclusters.qcow2 'write -s text 2k 2k' 'write -s text 70k 20k' 'write -z 76k 4k' 'write -P 9 200000 30000' 'discard 204800 8192' 'write -s noise 1000k 4k'
qemu-img bitmap --add -g 32768 subclusters.qcow2 bits
qemu-img bitmap --add --disable subclusters.qcow2 other
keep subclusters

head -c 200000 text > disk.raw; dd if=noise of=disk.raw bs=4k seek=25 count=1 conv=notrunc 2> /dev/null; truncate -s 1M disk.raw
qemu-img convert -c -O qcow2 -o cluster_size=16384,compression_type=zlib disk.raw zlib.qcow2
io zlib.qcow2 'write -P 3 100k 1k'
keep zlib
qemu-img convert -c -O qcow2 -o cluster_size=65536,compression_type=zstd disk.raw zstd.qcow2
keep zstd

# A chain: the image, a shorter qcow2 layer, a longer raw one. The layers are kept too.
head -c 300000 text > chain_base.raw; truncate -s 601088 chain_base.raw
create -b chain_base.raw -F raw -o cluster_size=4096 chain_middle.qcow2 400384
create -b chain_middle.qcow2 -F qcow2 -o cluster_size=65536 chain.qcow2 1M
io chain_middle.qcow2 'write -P 17 4096 8192' 'write -z 20480 4096' 'write -P 18 399000 1000'
io chain.qcow2 'write -P 19 0 100' 'write -z 131072 65536'
keep chain
gzip -9n < chain_middle.qcow2 > "$here/chain_middle.qcow2.gz"
gzip -9n < chain_base.raw > "$here/chain_base.raw.gz"

# Two snapshots, the disk grown between them. What the first reads as is kept as snapshots_first.raw.
create -o cluster_size=4096 snapshots.qcow2 256k
io snapshots.qcow2 'write -s text 0 100k'
qemu-img snapshot -c first snapshots.qcow2
io snapshots.qcow2 'write -P 2 50k 20k'
qemu-img resize -q -f qcow2 snapshots.qcow2 512k
io snapshots.qcow2 'write -P 4 400k 8k'
qemu-img snapshot -c 'second <b>&amp;' snapshots.qcow2
io snapshots.qcow2 'write -P 6 0 1k'
keep snapshots
qemu-img convert -f qcow2 -O raw -l snapshot.name=first snapshots.qcow2 snapshots_first.raw
# qemu-img keeps the present size; the snapshot's own disk has 256 KiB.
head -c 262144 snapshots_first.raw | gzip -9n > "$here/snapshots_first.raw.gz"

# An external data file, kept as data_file_data.raw.
create -o cluster_size=4096,data_file=data_file_data.raw data_file.qcow2 256k
io data_file.qcow2 'write -s text 0 64k' 'write -P 8 200k 10k' 'write -s noise 8k 4k'
keep data_file
gzip -9n < data_file_data.raw > "$here/data_file_data.raw.gz"
ls -l "$here"
