# SPDX-License-Identifier: GPL-2.0 OR MIT
#
# NeonSAN for Linux. `make help` says what there is.
#
# Two ways to build. Without KDIR or KERNEL everything is built in the lab's
# Debian root (tools/testing/lab), the same on every machine, for the kernel the
# lab boots. With KDIR=… or KERNEL=… the machine's own compilers build for the
# machine's own kernel. Kbuild never reads this file: it reads Kbuild.

MAKEFLAGS += --no-print-directory
SHELL := /bin/bash
# A failed program in a pipe is a failure.
.SHELLFLAGS := -o pipefail -c

top := $(patsubst %/,%,$(dir $(abspath $(lastword $(MAKEFILE_LIST)))))
lab := $(top)/tools/testing/lab
metadata := $(top)/tools/kernel-metadata

ifneq ($(KDIR)$(KERNEL),)
native := yes
endif
ifeq ($(NEONSAN_IN_ROOT),1)
native := yes
endif

# ARCH=arm64: module, tools and packages are cross-built in the lab for that
# architecture; for other targets ARCH in the environment, where kernel developers
# have it, means nothing. What is started finds it in the environment and not in the word
# ARCH, which the kernel's own make has too, with values of its own.
ifneq ($(filter-out amd64 x86_64 x86,$(ARCH)),)
cross-goals := module tools deb apt
ifneq ($(native)$(NATIVE),)
ifeq ($(origin ARCH),command line)
$(error ARCH is for builds in the lab; with KDIR, KERNEL or NATIVE leave it out: the kernel says what it is of)
endif
else ifeq ($(filter-out all $(cross-goals) help clean,$(MAKECMDGOALS)),)
export NEONSAN_ARCH := $(ARCH)
else ifeq ($(origin ARCH),command line)
$(error ARCH is for the targets $(cross-goals))
endif
endif
unexport ARCH
MAKEOVERRIDES := $(filter-out ARCH=%,$(MAKEOVERRIDES))

# Where products go: the module's objects and the programs.
OUT ?= $(top)/out
MO ?= $(OUT)/module
PREFIX ?= /usr/local
DESTDIR ?=
CARGO ?= cargo
RUSTC ?= rustc

.PHONY: all
all: module tools

.PHONY: help
help:
	@echo 'NeonSAN for Linux'
	@echo
	@echo 'make              build the module and the tools in the lab, for its kernel'
	@echo 'make demo         a guest runs from /dev/neonsan0: build, boot, attach, show'
	@echo 'make check        every test; ends with the line "N passed, N failed, N skipped"'
	@echo 'make check-host   a host with systemd, udev and LVM, its reboots and power cuts; the quick start'
	@echo 'make check-debug  the selftests on a kernel with KASAN, lockdep and kmemleak'
	@echo 'make bench        guest instructions per I/O of neonsan, its peers and its floors'
	@echo 'make check-faults the whole fault matrix; one cell: tools/testing/run-faults NAME'
	@echo 'make check-kernels a table of the kernels of Debian 13 and testing: for which the module builds, and why not'
	@echo 'make check-arm64  module and tools of arm64, cross-built, in an emulated machine of that architecture'
	@echo 'make check-tools  what people verify a QEMU block backend with: qemu-img, qemu-io, iotests, fio, blktrace …; PARTS="qemu-io fio"'
	@echo 'make flamegraph   where the CPU goes under load, kernel and programs: out/flamegraph/flamegraph.svg'
	@echo 'make check-ceph   the engine rbd and failover between nodes, on a real Ceph cluster'
	@echo 'make module       neonsan.ko; KDIR=DIR or KERNEL=RELEASE for a kernel of this machine, MO=DIR'
	@echo 'make tools        neonsan and neonsan-node; NATIVE=1 with the cargo of this machine'
	@echo 'make clippy       lint the tools and the module with warnings as errors'
	@echo 'make fmt          format every Rust file in place'
	@echo 'make doc          the API documents of the crates, in out/doc'
	@echo 'make install      what was built, under DESTDIR; needs KDIR=DIR or KERNEL=RELEASE'
	@echo 'make deb          Debian packages of everything, for the kernel of the lab, in out/deb'
	@echo 'make apt          make deb, and an apt repository of them, in out/apt'
	@echo 'make module tools deb apt ARCH=arm64  the same, cross-built for arm64'
	@echo 'make check-packages  the packages: installed, upgraded, removed with apt; PARTS="apt dkms reproducible"'
	@echo 'make shell        a shell in the virtual machine, with the module and the tools'
	@echo 'make host         a shell on a host with systemd and udev, all of it installed'
	@echo 'make clean        remove out/ (the lab keeps its cache: $$NEONSAN_CACHE, default /var/cache/neonsan)'
	@echo
	@echo 'KERNEL=running is the running kernel. Selftests by name: tools/testing/run-selftests --help'

# --- the module ---------------------------------------------------------------

ifeq ($(native),yes)

ifeq ($(KERNEL),running)
override KERNEL := $(shell uname -r)
endif

# KERNEL=RELEASE is KDIR=DIR with the directory prepared by the project's tool.
.PHONY: module
module:
	@set -e; kdir='$(KDIR)'; \
	if [ -z "$$kdir" ]; then \
		[ -n '$(KERNEL)' ] || { echo 'make module: name a kernel with KDIR=DIR or KERNEL=RELEASE' >&2; exit 2; }; \
		kdir=$$($(metadata)/neonsan-kernel-metadata '$(KERNEL)' | tail -n 1); \
	fi; \
	rustc=$$($(metadata)/check-kdir "$$kdir" '$(RUSTC)'); \
	words=$$($(metadata)/kernel-make "$$kdir"); \
	mkdir -p '$(MO)'; \
	$(MAKE) -C "$$kdir" M='$(top)' MO='$(abspath $(MO))' RUSTC="$$rustc" $$words $(if $(CLIPPY),CLIPPY=$(CLIPPY)) modules

else

.PHONY: module
module:
	@$(lab)/build module

endif

# --- the tools ----------------------------------------------------------------

ifneq ($(native)$(NATIVE),)

.PHONY: tools
tools:
	@$(CARGO) --version >/dev/null 2>&1 || { echo 'make tools: there is no cargo; install rustc and cargo 1.85 or newer, or leave out KDIR, KERNEL and NATIVE to build in the lab' >&2; exit 2; }
	$(CARGO) build --release --locked --manifest-path $(top)/tools/Cargo.toml -p neonsan-cli -p neonsan-node

else

.PHONY: tools
tools:
	@$(lab)/build tools

endif

# --- tests --------------------------------------------------------------------

.PHONY: demo
demo:
	@$(top)/tools/testing/demo/demo

.PHONY: check
check:
	@$(top)/tools/testing/check

# PARTS='udev boot' are parts by name; COLD=1: the quick start keeps nothing of an earlier run.
.PHONY: check-host
check-host:
	@$(top)/tools/testing/host/run $(if $(COLD),--cold) $(PARTS)

.PHONY: check-debug
check-debug:
	@$(top)/tools/testing/check --debug-kernel

.PHONY: bench
bench:
	@$(top)/tools/testing/bench/bench

# FAULTS=… are options and cells for tools/testing/run-faults.
.PHONY: check-faults
check-faults:
	@$(top)/tools/testing/run-faults $(FAULTS)

# KERNELS=… are options and releases for tools/testing/kernels.
.PHONY: check-kernels
check-kernels:
	@$(top)/tools/testing/kernels $(KERNELS)

.PHONY: check-arm64
check-arm64:
	@$(top)/tools/testing/arm64

.PHONY: check-ceph
check-ceph:
	@$(top)/tools/testing/check --ceph

# PARTS=… are parts of tools/testing/toolbox/run; PEER=nbd runs them on NBD disks.
.PHONY: check-tools
check-tools:
	@$(top)/tools/testing/toolbox/run $(if $(PEER),--peer $(PEER)) $(PARTS)

.PHONY: flamegraph
flamegraph:
	@$(top)/tools/testing/toolbox/run $(if $(PEER),--peer $(PEER)) --out $(OUT)/flamegraph flamegraph

.PHONY: shell
shell:
	@$(top)/tools/testing/run-selftests --shell

.PHONY: host
host:
	@$(top)/tools/testing/host/run --shell

# --- packages -----------------------------------------------------------------

.PHONY: deb
deb:
	@$(top)/tools/packaging/deb

.PHONY: apt
apt: deb
	@$(top)/tools/packaging/apt

# PARTS=… are parts of tools/testing/packages/run; without it, apt.
.PHONY: check-packages
check-packages:
	@$(top)/tools/testing/packages/run $(PARTS)

# --- source -------------------------------------------------------------------

.PHONY: clippy
clippy:
	@$(lab)/build clippy

.PHONY: fmt
fmt:
	@$(lab)/build fmt

.PHONY: doc
doc:
	@$(lab)/build doc

# --- installing -----------------------------------------------------------------

.PHONY: install
install:
	@KDIR='$(KDIR)' KERNEL='$(KERNEL)' MO='$(abspath $(MO))' PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' \
		$(top)/tools/packaging/install

.PHONY: clean
clean:
	rm -rf '$(top)/out'
