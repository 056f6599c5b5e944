#!/bin/sh
# A few steps of what is shipped and needs no files, through the installed command. Usage: smoke.sh [folder of the programs]
set -eu
bin=${1:-$(dirname "$(command -v sam-train)")}
case $bin in /*) ;; *) bin=$PWD/$bin ;; esac
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
tiny="data=synthetic data.num_train=64 data.num_test=32 data.image_size=16 batch_size=32 debug=fast"
run() { echo "sam-train $*"; "$bin/sam-train" "$@" >log 2>&1 || { cat log; exit 1; }; }

run -m $tiny optimizer=sgd,sam optimizer/base=sgd,adamw,rmsprop schedule=cosine,linear,constant,step sweep_name=optimizers
run -m $tiny optimizer=sam model=small_cnn,resnet20,resnet32 augment=none,basic,cutout noise=none,symmetric sweep_name=data
run -m $tiny optimizer=sam augment=autoaugment,randaugment,trivialaugment,erasing,mixup,cutmix noise=pair,instance sweep_name=more
run $tiny optimizer=sam precision=bf16 optimizer.m=8 accumulate=8 ema_decay=0.9 grad_clip=5 channels_last=true data.val_fraction=0.25
run $tiny optimizer=sam precision=fp16
run $tiny optimizer=sam optimizer.second_order=true
run $tiny optimizer=sam optimizer.p=inf optimizer.ascent_steps=2
run optimizer=sam rho=0.05 epochs=1 run_dir=digits
"$bin/sam-eval" digits
"$bin/sam-train" optimizer=sam model=resnet110 dry_run=true
run $tiny optimizer=sam model=wrn28_10 model.depth=10 model.widen_factor=1 model.init=sam
run $tiny optimizer=sam model=shake_shake26_2x96d model.depth=8 model.width=4
run $tiny optimizer=sam model=resnet32_mentormix model.depth=8 model.width=4
run $tiny optimizer=sam model=pyramidnet272_shakedrop model.depth=11 model.alpha=9 run_dir=pyramid
run $tiny optimizer=sam model=pyramidnet272 model.depth=11 model.alpha=9 head_lr=0.1 freeze_batchnorm_stats=true \
    model.weights="$(ls pyramid/checkpoints/*.pt | tail -1)"
run $tiny precision=fp32 optimizer=sam model=torchvision model.name=shufflenet_v2_x0_5  # bf16: NaN on CPUs with AVX512-BF16 (torch 2.14)
for model in shake_shake26_2x64d vit_b_32; do
    run data=synthetic data.image_size=32 data.num_train=128 data.num_test=8 optimizer=sam model=$model dry_run=true
done
if "$bin/sam-train" rho=-1 2>log; then echo "a negative rho was accepted"; exit 1; fi
echo "smoke: all passed"
