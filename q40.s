	.file	"<string>"
	.section	.rodata.cst4,"aM",@progbits,4
	.p2align	2, 0x0
.LCPI0_0:
	.long	2147483648
.LCPI0_1:
	.long	0x3e000000
.LCPI0_2:
	.long	0x3f800000
.LCPI0_3:
	.long	0x41080000
.LCPI0_4:
	.long	15
.LCPI0_5:
	.long	0x7fffffff
.LCPI0_6:
	.long	0x3f000000
	.section	.ltext,"axl",@progbits
	.globl	_ZN8__main__3q40B2v1B56c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAK4JJIqUWsIgmAA_3d_3dE5ArrayIfLi2E1C7mutable7alignedE5ArrayIhLi2E1C7mutable7alignedE
	.p2align	4
	.type	_ZN8__main__3q40B2v1B56c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAK4JJIqUWsIgmAA_3d_3dE5ArrayIfLi2E1C7mutable7alignedE5ArrayIhLi2E1C7mutable7alignedE,@function
_ZN8__main__3q40B2v1B56c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAK4JJIqUWsIgmAA_3d_3dE5ArrayIfLi2E1C7mutable7alignedE5ArrayIhLi2E1C7mutable7alignedE:
	.cfi_startproc
	pushq	%rbp
	.cfi_def_cfa_offset 16
	pushq	%r15
	.cfi_def_cfa_offset 24
	pushq	%r14
	.cfi_def_cfa_offset 32
	pushq	%r13
	.cfi_def_cfa_offset 40
	pushq	%r12
	.cfi_def_cfa_offset 48
	pushq	%rbx
	.cfi_def_cfa_offset 56
	.cfi_offset %rbx, -56
	.cfi_offset %r12, -48
	.cfi_offset %r13, -40
	.cfi_offset %r14, -32
	.cfi_offset %r15, -24
	.cfi_offset %rbp, -16
	movq	64(%rsp), %rcx
	xorl	%eax, %eax
	testq	%rcx, %rcx
	jle	.LBB0_13
	movq	72(%rsp), %r8
	movq	144(%rsp), %rsi
	movq	128(%rsp), %r14
	movq	56(%rsp), %r9
	movq	%rdi, -40(%rsp)
	movabsq	$.LCPI0_2, %r15
	movabsq	$8070450532247928768, %r13
	movabsq	$.LCPI0_4, %rbp
	movq	$0, -64(%rsp)
	vmovss	(%r15), %xmm0
	movabsq	$.LCPI0_6, %r15
	vmovss	(%r15), %xmm2
	movq	%r8, %rax
	sarq	$63, %rax
	movq	%r8, %r11
	sarq	%r11
	leaq	2(%r14), %rbx
	movq	%r8, %rdi
	andnq	%r8, %rax, %r10
	leaq	-1(%rcx), %rax
	movq	%rsi, %rcx
	leaq	(%r14,%r11), %rdx
	imulq	%rax, %rcx
	imulq	%r8, %rax
	addq	%r11, %rax
	leaq	2(%rcx,%rdx), %rcx
	movabsq	$9223372036854775744, %rdx
	leaq	64(%r9,%rax,4), %rax
	andq	%rdx, %rdi
	orq	$56, %rdx
	andq	%r8, %rdx
	movq	%rdi, -32(%rsp)
	leaq	192(%r9), %rdi
	cmpq	%rax, %rbx
	movq	%rdx, -24(%rsp)
	movq	%r8, %rdx
	setb	%al
	cmpq	%rcx, %r9
	setb	%cl
	andb	%al, %cl
	testq	%rsi, %rsi
	sets	%al
	shrq	$61, %rdx
	xorl	%esi, %esi
	andl	$1, %edx
	orb	%al, %dl
	movq	%r11, %rax
	andq	%r13, %rax
	orq	$56, %r13
	orb	%cl, %dl
	movabsq	$.LCPI0_5, %rcx
	movq	%rax, -56(%rsp)
	movl	%r11d, %eax
	andl	$3, %eax
	andq	%r11, %r13
	vbroadcastss	(%rcx), %xmm1
	movabsq	$.LCPI0_0, %rcx
	movq	%rdx, -16(%rsp)
	movq	%rax, -48(%rsp)
	xorl	%edx, %edx
	vpbroadcastd	(%rcx), %ymm3
	vpbroadcastd	(%rcx), %zmm4
	leaq	50(%r14), %rcx
	jmp	.LBB0_2
	.p2align	4
.LBB0_9:
	movq	64(%rsp), %r15
	vmovd	%xmm6, %esi
	addl	$-1056964608, %esi
.LBB0_73:
	movq	144(%rsp), %r12
	vmovmskps	%xmm5, %eax
	movq	128(%rsp), %rbp
	leaq	1(%rdx), %r14
	shll	$15, %eax
	orl	%esi, %eax
	notl	%esi
	andl	$31744, %esi
	imulq	%r12, %rdx
	cmpw	$1, %si
	movq	-8(%rsp), %rsi
	movw	%ax, (%rbp,%rdx)
	leaq	(,%r8,4), %rax
	movabsq	$.LCPI0_4, %rbp
	movq	%r14, %rdx
	adcq	$0, %rsi
	addq	%rax, %rdi
	addq	%rax, %r9
	addq	%r12, %rcx
	addq	%r12, %rbx
	cmpq	%r15, %r14
	je	.LBB0_12
.LBB0_2:
	movq	%rsi, -8(%rsp)
	testq	%r8, %r8
	jle	.LBB0_3
	cmpq	$8, %r8
	jae	.LBB0_16
	xorl	%esi, %esi
	xorl	%r15d, %r15d
	xorl	%r14d, %r14d
	jmp	.LBB0_25
	.p2align	4
.LBB0_3:
	xorl	%r15d, %r15d
	xorl	%esi, %esi
	jmp	.LBB0_26
	.p2align	4
.LBB0_16:
	cmpq	$64, %r8
	jae	.LBB0_18
	xorl	%r12d, %r12d
	xorl	%esi, %esi
	xorl	%r15d, %r15d
	jmp	.LBB0_22
.LBB0_18:
	movq	-32(%rsp), %r14
	vpxor	%xmm9, %xmm9, %xmm9
	xorl	%esi, %esi
	vpxor	%xmm10, %xmm10, %xmm10
	vpxor	%xmm11, %xmm11, %xmm11
	vpxor	%xmm12, %xmm12, %xmm12
	vpxor	%xmm5, %xmm5, %xmm5
	vpxor	%xmm6, %xmm6, %xmm6
	vpxor	%xmm7, %xmm7, %xmm7
	vpxor	%xmm8, %xmm8, %xmm8
	.p2align	4
.LBB0_19:
	vmovdqu64	-128(%rdi,%rsi,4), %zmm14
	vmovdqu64	-192(%rdi,%rsi,4), %zmm13
	vmovdqu64	-64(%rdi,%rsi,4), %zmm15
	vmovdqu64	(%rdi,%rsi,4), %zmm16
	addq	$64, %rsi
	vpmaxsd	%zmm6, %zmm14, %zmm6
	vpxord	%zmm4, %zmm14, %zmm14
	vpmaxsd	%zmm5, %zmm13, %zmm5
	vpmaxsd	%zmm7, %zmm15, %zmm7
	vpxord	%zmm4, %zmm13, %zmm13
	vpxord	%zmm4, %zmm15, %zmm15
	vpmaxsd	%zmm8, %zmm16, %zmm8
	vpmaxsd	%zmm10, %zmm14, %zmm10
	vpxord	%zmm4, %zmm16, %zmm14
	vpmaxsd	%zmm9, %zmm13, %zmm9
	vpmaxsd	%zmm11, %zmm15, %zmm11
	vpmaxsd	%zmm12, %zmm14, %zmm12
	cmpq	%rsi, %r14
	jne	.LBB0_19
	vpmaxsd	%zmm6, %zmm5, %zmm5
	vpmaxsd	%zmm8, %zmm7, %zmm6
	vpmaxsd	%zmm10, %zmm9, %zmm9
	vpmaxsd	%zmm12, %zmm11, %zmm11
	vpmaxsd	%zmm6, %zmm5, %zmm5
	vpmaxsd	%zmm11, %zmm9, %zmm9
	vextracti64x4	$1, %zmm9, %ymm10
	vextracti64x4	$1, %zmm5, %ymm6
	vpmaxsd	%zmm10, %zmm9, %zmm9
	vpmaxsd	%zmm6, %zmm5, %zmm5
	vextracti128	$1, %ymm9, %xmm10
	vextracti128	$1, %ymm5, %xmm6
	vpmaxsd	%xmm10, %xmm9, %xmm9
	vpmaxsd	%xmm6, %xmm5, %xmm5
	vpshufd	$238, %xmm9, %xmm10
	vpshufd	$238, %xmm5, %xmm6
	vpmaxsd	%xmm10, %xmm9, %xmm9
	vpmaxsd	%xmm6, %xmm5, %xmm5
	vpshufd	$85, %xmm9, %xmm10
	vpshufd	$85, %xmm5, %xmm6
	vpmaxsd	%xmm10, %xmm9, %xmm9
	vpmaxsd	%xmm6, %xmm5, %xmm5
	vmovd	%xmm9, %esi
	vmovd	%xmm5, %r15d
	cmpq	%r14, %r8
	je	.LBB0_26
	movq	%r14, %r12
	testb	$56, %r8b
	je	.LBB0_25
.LBB0_22:
	movq	-24(%rsp), %rax
	vpbroadcastd	%esi, %ymm6
	vpbroadcastd	%r15d, %ymm5
	.p2align	4
.LBB0_23:
	vmovdqu	(%r9,%r12,4), %ymm7
	addq	$8, %r12
	vpmaxsd	%ymm5, %ymm7, %ymm5
	vpxor	%ymm3, %ymm7, %ymm7
	vpmaxsd	%ymm6, %ymm7, %ymm6
	cmpq	%r12, %rax
	jne	.LBB0_23
	vextracti128	$1, %ymm6, %xmm7
	movq	%rax, %r14
	vpmaxsd	%xmm7, %xmm6, %xmm6
	vpshufd	$238, %xmm6, %xmm7
	vpmaxsd	%xmm7, %xmm6, %xmm6
	vpshufd	$85, %xmm6, %xmm7
	vpmaxsd	%xmm7, %xmm6, %xmm6
	vmovd	%xmm6, %esi
	vextracti128	$1, %ymm5, %xmm6
	vpmaxsd	%xmm6, %xmm5, %xmm5
	vpshufd	$238, %xmm5, %xmm6
	vpmaxsd	%xmm6, %xmm5, %xmm5
	vpshufd	$85, %xmm5, %xmm6
	vpmaxsd	%xmm6, %xmm5, %xmm5
	vmovd	%xmm5, %r15d
	cmpq	%rax, %r8
	je	.LBB0_26
	.p2align	4
.LBB0_25:
	movl	%esi, %eax
	movl	(%r9,%r14,4), %esi
	incq	%r14
	cmpl	%r15d, %esi
	cmovgl	%esi, %r15d
	addl	$-2147483648, %esi
	cmpl	%eax, %esi
	cmovlel	%eax, %esi
	cmpq	%r14, %r8
	jne	.LBB0_25
.LBB0_26:
	movq	-64(%rsp), %rax
	cmpl	%r15d, %esi
	movl	%r15d, %r14d
	cmovgl	%esi, %r14d
	cmpl	%eax, %r14d
	cmovgl	%r14d, %eax
	movq	%rax, -64(%rsp)
	cmpl	%r15d, %esi
	jne	.LBB0_32
	testl	%r14d, %r14d
	je	.LBB0_32
	xorl	%esi, %esi
	.p2align	4
.LBB0_4:
	cmpq	%rsi, %r10
	je	.LBB0_5
	movl	(%r9,%rsi,4), %r15d
	incq	%rsi
	movl	%r15d, %eax
	andl	$2147483647, %eax
	cmpl	%r14d, %eax
	jne	.LBB0_4
	movabsq	$.LCPI0_1, %rax
	vmovd	%r14d, %xmm5
	vmulss	(%rax), %xmm5, %xmm8
	testl	%r15d, %r15d
	jns	.LBB0_31
	jmp	.LBB0_33
	.p2align	4
.LBB0_32:
	movabsq	$.LCPI0_1, %rax
	vmovd	%r14d, %xmm5
	vmulss	(%rax), %xmm5, %xmm8
	cmpl	%r15d, %esi
	jle	.LBB0_31
.LBB0_33:
	vmovaps	%xmm8, %xmm5
	jmp	.LBB0_34
	.p2align	4
.LBB0_5:
	movabsq	$.LCPI0_1, %rax
	vmovd	%r14d, %xmm5
	vmulss	(%rax), %xmm5, %xmm8
.LBB0_31:
	movabsq	$.LCPI0_0, %rax
	vxorps	(%rax){1to4}, %xmm8, %xmm5
.LBB0_34:
	vdivss	%xmm5, %xmm0, %xmm6
	movabsq	$.LCPI0_3, %rsi
	vmovss	(%rsi), %xmm7
	vmovd	%xmm6, %eax
	andl	$2147483647, %eax
	cmpl	$2139095039, %eax
	jle	.LBB0_35
	vxorps	%xmm6, %xmm6, %xmm6
	vucomiss	%xmm6, %xmm8
	jne	.LBB0_7
	jnp	.LBB0_35
.LBB0_7:
	vxorps	%xmm7, %xmm7, %xmm7
.LBB0_35:
	testq	%r11, %r11
	jle	.LBB0_8
	cmpq	$8, %r11
	setb	%al
	orb	-16(%rsp), %al
	testb	$1, %al
	je	.LBB0_38
	xorl	%r15d, %r15d
	jmp	.LBB0_47
	.p2align	4
.LBB0_38:
	cmpq	$64, %r11
	jae	.LBB0_40
	xorl	%esi, %esi
	jmp	.LBB0_44
.LBB0_40:
	movq	-56(%rsp), %rax
	vbroadcastss	%xmm6, %zmm8
	vbroadcastss	%xmm7, %zmm9
	xorl	%esi, %esi
	.p2align	4
.LBB0_41:
	vmulps	(%r9,%rsi,4), %zmm8, %zmm10
	vmulps	64(%r9,%rsi,4), %zmm8, %zmm11
	vmulps	128(%r9,%rsi,4), %zmm8, %zmm12
	vmulps	192(%r9,%rsi,4), %zmm8, %zmm13
	vmulps	256(%r9,%rsi,4), %zmm8, %zmm15
	vpbroadcastd	(%rbp), %zmm14
	vaddps	%zmm10, %zmm9, %zmm10
	vaddps	%zmm11, %zmm9, %zmm11
	vaddps	%zmm12, %zmm9, %zmm12
	vaddps	%zmm13, %zmm9, %zmm13
	vaddps	%zmm15, %zmm9, %zmm15
	vcvttps2dq	%zmm10, %zmm10
	vcvttps2dq	%zmm11, %zmm11
	vcvttps2dq	%zmm12, %zmm12
	vcvttps2dq	%zmm13, %zmm13
	vcvttps2dq	%zmm15, %zmm15
	vpminsd	%zmm14, %zmm12, %zmm12
	vpminsd	%zmm14, %zmm13, %zmm13
	vpminsd	%zmm14, %zmm10, %zmm10
	vpminsd	%zmm14, %zmm11, %zmm11
	vpminsd	%zmm14, %zmm15, %zmm14
	vpslld	$4, %zmm11, %zmm15
	vpslld	$4, %zmm12, %zmm17
	vpslld	$4, %zmm13, %zmm16
	vpslld	$4, %zmm14, %zmm14
	vpord	%zmm10, %zmm15, %zmm10
	vpord	%zmm11, %zmm17, %zmm11
	vpord	%zmm12, %zmm16, %zmm12
	vpord	%zmm13, %zmm14, %zmm13
	vpmovdb	%zmm10, -48(%rcx,%rsi)
	vpmovdb	%zmm11, -32(%rcx,%rsi)
	vpmovdb	%zmm12, -16(%rcx,%rsi)
	vpmovdb	%zmm13, (%rcx,%rsi)
	addq	$64, %rsi
	cmpq	%rsi, %rax
	jne	.LBB0_41
	cmpq	%rax, %r11
	je	.LBB0_8
	movq	-56(%rsp), %r15
	movq	%r15, %rsi
	testb	$112, %r8b
	je	.LBB0_47
.LBB0_44:
	vbroadcastss	%xmm6, %ymm8
	vbroadcastss	%xmm7, %ymm9
	.p2align	4
.LBB0_45:
	vmulps	(%r9,%rsi,4), %ymm8, %ymm10
	vmulps	64(%r9,%rsi,4), %ymm8, %ymm12
	vpbroadcastd	(%rbp), %ymm11
	vaddps	%ymm10, %ymm9, %ymm10
	vaddps	%ymm12, %ymm9, %ymm12
	vcvttps2dq	%ymm10, %ymm10
	vcvttps2dq	%ymm12, %ymm12
	vpminsd	%ymm11, %ymm10, %ymm10
	vpminsd	%ymm11, %ymm12, %ymm11
	vpslld	$4, %ymm11, %ymm11
	vpor	%ymm10, %ymm11, %ymm10
	vpmovdb	%ymm10, (%rbx,%rsi)
	addq	$8, %rsi
	cmpq	%rsi, %r13
	jne	.LBB0_45
	movq	%r13, %r15
	cmpq	%r13, %r11
	je	.LBB0_8
.LBB0_47:
	cmpq	$0, -48(%rsp)
	movq	%r15, %rsi
	je	.LBB0_54
	movq	-48(%rsp), %r14
	movq	%r15, %rsi
	jmp	.LBB0_49
	.p2align	4
.LBB0_53:
	shll	$4, %eax
	orl	%r12d, %eax
	movb	%al, (%rbx,%rsi)
	incq	%rsi
	decq	%r14
	je	.LBB0_54
.LBB0_49:
	vmulss	(%r9,%rsi,4), %xmm6, %xmm8
	vaddss	%xmm7, %xmm8, %xmm8
	vcvttss2si	%xmm8, %r12d
	cmpl	$15, %r12d
	jl	.LBB0_51
	movl	$15, %r12d
.LBB0_51:
	vmulss	64(%r9,%rsi,4), %xmm6, %xmm8
	vaddss	%xmm7, %xmm8, %xmm8
	vcvttss2si	%xmm8, %eax
	cmpl	$15, %eax
	jl	.LBB0_53
	movl	$15, %eax
	jmp	.LBB0_53
	.p2align	4
.LBB0_54:
	subq	%r11, %r15
	cmpq	$-4, %r15
	jbe	.LBB0_55
.LBB0_8:
	vandps	%xmm1, %xmm5, %xmm6
	vmovd	%xmm6, %esi
	vaddss	%xmm2, %xmm6, %xmm6
	btl	$13, %esi
	movl	%esi, %r14d
	adcl	$-939520001, %r14d
	cmpl	$947912704, %esi
	jb	.LBB0_9
	movq	64(%rsp), %r15
	cmpl	$2139095040, %esi
	ja	.LBB0_11
	shrl	$13, %r14d
	cmpl	$1199566848, %esi
	movl	$31744, %eax
	cmovael	%eax, %r14d
	movl	%r14d, %esi
	jmp	.LBB0_73
	.p2align	4
.LBB0_71:
	shll	$4, %eax
	orl	%r14d, %eax
	movb	%al, 3(%rbx,%rsi)
	addq	$4, %rsi
	cmpq	%rsi, %r11
	je	.LBB0_8
.LBB0_55:
	vmulss	(%r9,%rsi,4), %xmm6, %xmm8
	vaddss	%xmm7, %xmm8, %xmm8
	vcvttss2si	%xmm8, %r14d
	cmpl	$15, %r14d
	jl	.LBB0_57
	movl	$15, %r14d
.LBB0_57:
	vmulss	64(%r9,%rsi,4), %xmm6, %xmm8
	vaddss	%xmm7, %xmm8, %xmm8
	vcvttss2si	%xmm8, %eax
	cmpl	$15, %eax
	jl	.LBB0_59
	movl	$15, %eax
.LBB0_59:
	shll	$4, %eax
	orl	%r14d, %eax
	movb	%al, (%rbx,%rsi)
	vmulss	4(%r9,%rsi,4), %xmm6, %xmm8
	vaddss	%xmm7, %xmm8, %xmm8
	vcvttss2si	%xmm8, %r14d
	cmpl	$15, %r14d
	jl	.LBB0_61
	movl	$15, %r14d
.LBB0_61:
	vmulss	68(%r9,%rsi,4), %xmm6, %xmm8
	vaddss	%xmm7, %xmm8, %xmm8
	vcvttss2si	%xmm8, %eax
	cmpl	$15, %eax
	jl	.LBB0_63
	movl	$15, %eax
.LBB0_63:
	shll	$4, %eax
	orl	%r14d, %eax
	movb	%al, 1(%rbx,%rsi)
	vmulss	8(%r9,%rsi,4), %xmm6, %xmm8
	vaddss	%xmm7, %xmm8, %xmm8
	vcvttss2si	%xmm8, %r14d
	cmpl	$15, %r14d
	jl	.LBB0_65
	movl	$15, %r14d
.LBB0_65:
	vmulss	72(%r9,%rsi,4), %xmm6, %xmm8
	vaddss	%xmm7, %xmm8, %xmm8
	vcvttss2si	%xmm8, %eax
	cmpl	$15, %eax
	jl	.LBB0_67
	movl	$15, %eax
.LBB0_67:
	shll	$4, %eax
	orl	%r14d, %eax
	movb	%al, 2(%rbx,%rsi)
	vmulss	12(%r9,%rsi,4), %xmm6, %xmm8
	vaddss	%xmm7, %xmm8, %xmm8
	vcvttss2si	%xmm8, %r14d
	cmpl	$15, %r14d
	jl	.LBB0_69
	movl	$15, %r14d
.LBB0_69:
	vmulss	76(%r9,%rsi,4), %xmm6, %xmm8
	vaddss	%xmm7, %xmm8, %xmm8
	vcvttss2si	%xmm8, %eax
	cmpl	$15, %eax
	jl	.LBB0_71
	movl	$15, %eax
	jmp	.LBB0_71
	.p2align	4
.LBB0_11:
	shrl	$13, %esi
	andl	$511, %esi
	orl	$32256, %esi
	jmp	.LBB0_73
.LBB0_12:
	cmpl	$2139095040, -64(%rsp)
	movq	-40(%rsp), %rdi
	movq	$-1, %rax
	cmovgeq	%rax, %rsi
	movq	%rsi, %rax
.LBB0_13:
	movq	%rax, (%rdi)
	xorl	%eax, %eax
	popq	%rbx
	.cfi_def_cfa_offset 48
	popq	%r12
	.cfi_def_cfa_offset 40
	popq	%r13
	.cfi_def_cfa_offset 32
	popq	%r14
	.cfi_def_cfa_offset 24
	popq	%r15
	.cfi_def_cfa_offset 16
	popq	%rbp
	.cfi_def_cfa_offset 8
	vzeroupper
	retq
.Lfunc_end0:
	.size	_ZN8__main__3q40B2v1B56c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAK4JJIqUWsIgmAA_3d_3dE5ArrayIfLi2E1C7mutable7alignedE5ArrayIhLi2E1C7mutable7alignedE, .Lfunc_end0-_ZN8__main__3q40B2v1B56c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAK4JJIqUWsIgmAA_3d_3dE5ArrayIfLi2E1C7mutable7alignedE5ArrayIhLi2E1C7mutable7alignedE
	.cfi_endproc

	.globl	_ZN7cpython8__main__3q40B2v1B56c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAK4JJIqUWsIgmAA_3d_3dE5ArrayIfLi2E1C7mutable7alignedE5ArrayIhLi2E1C7mutable7alignedE
	.p2align	4
	.type	_ZN7cpython8__main__3q40B2v1B56c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAK4JJIqUWsIgmAA_3d_3dE5ArrayIfLi2E1C7mutable7alignedE5ArrayIhLi2E1C7mutable7alignedE,@function
_ZN7cpython8__main__3q40B2v1B56c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAK4JJIqUWsIgmAA_3d_3dE5ArrayIfLi2E1C7mutable7alignedE5ArrayIhLi2E1C7mutable7alignedE:
	.cfi_startproc
	pushq	%rbp
	.cfi_def_cfa_offset 16
	pushq	%r15
	.cfi_def_cfa_offset 24
	pushq	%r14
	.cfi_def_cfa_offset 32
	pushq	%r13
	.cfi_def_cfa_offset 40
	pushq	%r12
	.cfi_def_cfa_offset 48
	pushq	%rbx
	.cfi_def_cfa_offset 56
	subq	$312, %rsp
	.cfi_def_cfa_offset 368
	.cfi_offset %rbx, -56
	.cfi_offset %r12, -48
	.cfi_offset %r13, -40
	.cfi_offset %r14, -32
	.cfi_offset %r15, -24
	.cfi_offset %rbp, -16
	movq	%rsi, %rdi
	movabsq	$.const.q40, %rsi
	movabsq	$PyArg_UnpackTuple, %r10
	leaq	152(%rsp), %r8
	leaq	144(%rsp), %r9
	movl	$2, %edx
	movl	$2, %ecx
	xorl	%eax, %eax
	callq	*%r10
	testl	%eax, %eax
	je	.LBB1_1
	movabsq	$_ZN08NumbaEnv8__main__3q40B2v1B56c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAK4JJIqUWsIgmAA_3d_3dE5ArrayIfLi2E1C7mutable7alignedE5ArrayIhLi2E1C7mutable7alignedE, %rax
	cmpq	$0, (%rax)
	je	.LBB1_4
	movq	152(%rsp), %rdi
	movabsq	$NRT_adapt_ndarray_from_python, %r14
	leaq	160(%rsp), %rsi
	vxorps	%xmm0, %xmm0, %xmm0
	vmovups	%zmm0, 160(%rsp)
	movq	$0, 224(%rsp)
	vzeroupper
	callq	*%r14
	cmpq	$4, 184(%rsp)
	setne	%cl
	testl	%eax, %eax
	setne	%bl
	orb	%cl, %bl
	cmpb	$1, %bl
	je	.LBB1_7
	testb	%bl, %bl
	jne	.LBB1_1
.LBB1_9:
	movq	200(%rsp), %rax
	movq	144(%rsp), %rdi
	movq	160(%rsp), %rbx
	movq	192(%rsp), %rbp
	movq	208(%rsp), %r12
	leaq	240(%rsp), %rsi
	vxorps	%xmm0, %xmm0, %xmm0
	vmovups	%zmm0, 240(%rsp)
	movq	$0, 304(%rsp)
	movq	%rax, 136(%rsp)
	vzeroupper
	callq	*%r14
	testl	%eax, %eax
	jne	.LBB1_11
	cmpq	$1, 264(%rsp)
	jne	.LBB1_11
	movq	240(%rsp), %r14
	movq	272(%rsp), %r15
	movq	288(%rsp), %r13
	movabsq	$PyEval_SaveThread, %rax
	callq	*%rax
	movq	136(%rsp), %rdx
	movq	%rax, 128(%rsp)
	movabsq	$_ZN8__main__3q40B2v1B56c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAK4JJIqUWsIgmAA_3d_3dE5ArrayIfLi2E1C7mutable7alignedE5ArrayIhLi2E1C7mutable7alignedE, %rax
	leaq	120(%rsp), %rdi
	movq	$0, 120(%rsp)
	movq	%r13, 88(%rsp)
	movq	%r15, 72(%rsp)
	movq	%r14, 40(%rsp)
	movq	%r12, 16(%rsp)
	movq	%rbp, (%rsp)
	movq	%rdx, 8(%rsp)
	movq	%rbx, %rdx
	callq	*%rax
	movq	128(%rsp), %rdi
	movq	120(%rsp), %r15
	movl	%eax, %ebp
	movabsq	$PyEval_RestoreThread, %rax
	callq	*%rax
	movabsq	$NRT_decref, %r12
	movq	%rbx, %rdi
	callq	*%r12
	movq	%r14, %rdi
	callq	*%r12
	testl	%ebp, %ebp
	jne	.LBB1_13
	movabsq	$PyLong_FromLongLong, %rax
	movq	%r15, %rdi
	callq	*%rax
.LBB1_2:
	addq	$312, %rsp
	.cfi_def_cfa_offset 56
	popq	%rbx
	.cfi_def_cfa_offset 48
	popq	%r12
	.cfi_def_cfa_offset 40
	popq	%r13
	.cfi_def_cfa_offset 32
	popq	%r14
	.cfi_def_cfa_offset 24
	popq	%r15
	.cfi_def_cfa_offset 16
	popq	%rbp
	.cfi_def_cfa_offset 8
	retq
.LBB1_13:
	.cfi_def_cfa_offset 368
	jg	.LBB1_20
	cmpl	$-1, %ebp
	je	.LBB1_1
	cmpl	$-3, %ebp
	jne	.LBB1_18
	movabsq	$PyExc_StopIteration, %rdi
	movabsq	$PyErr_SetNone, %rax
	callq	*%rax
	jmp	.LBB1_1
.LBB1_4:
	movabsq	$PyExc_RuntimeError, %rdi
	movabsq	$".const.missing Environment: _ZN08NumbaEnv8__main__3q40B2v1B56c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAK4JJIqUWsIgmAA_3d_3dE5ArrayIfLi2E1C7mutable7alignedE5ArrayIhLi2E1C7mutable7alignedE", %rsi
	jmp	.LBB1_5
.LBB1_7:
	movabsq	$PyExc_TypeError, %rdi
	movabsq	$".const.can't unbox array from PyObject into native value.  The object maybe of a different type", %rsi
	movabsq	$PyErr_SetString, %rax
	callq	*%rax
	testb	%bl, %bl
	je	.LBB1_9
	jmp	.LBB1_1
.LBB1_11:
	movabsq	$PyExc_TypeError, %rdi
	movabsq	$".const.can't unbox array from PyObject into native value.  The object maybe of a different type", %rsi
	movabsq	$PyErr_SetString, %rax
	callq	*%rax
	movabsq	$NRT_decref, %rax
	movq	%rbx, %rdi
	callq	*%rax
	jmp	.LBB1_1
.LBB1_18:
	movabsq	$PyExc_SystemError, %rdi
	movabsq	$".const.unknown error when calling native function", %rsi
.LBB1_5:
	movabsq	$PyErr_SetString, %rax
	callq	*%rax
.LBB1_1:
	xorl	%eax, %eax
	jmp	.LBB1_2
.LBB1_20:
	movabsq	$PyErr_Clear, %rax
	callq	*%rax
.Lfunc_end1:
	.size	_ZN7cpython8__main__3q40B2v1B56c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAK4JJIqUWsIgmAA_3d_3dE5ArrayIfLi2E1C7mutable7alignedE5ArrayIhLi2E1C7mutable7alignedE, .Lfunc_end1-_ZN7cpython8__main__3q40B2v1B56c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAK4JJIqUWsIgmAA_3d_3dE5ArrayIfLi2E1C7mutable7alignedE5ArrayIhLi2E1C7mutable7alignedE
	.cfi_endproc

	.globl	cfunc._ZN8__main__3q40B2v1B56c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAK4JJIqUWsIgmAA_3d_3dE5ArrayIfLi2E1C7mutable7alignedE5ArrayIhLi2E1C7mutable7alignedE
	.p2align	4
	.type	cfunc._ZN8__main__3q40B2v1B56c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAK4JJIqUWsIgmAA_3d_3dE5ArrayIfLi2E1C7mutable7alignedE5ArrayIhLi2E1C7mutable7alignedE,@function
cfunc._ZN8__main__3q40B2v1B56c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAK4JJIqUWsIgmAA_3d_3dE5ArrayIfLi2E1C7mutable7alignedE5ArrayIhLi2E1C7mutable7alignedE:
	.cfi_startproc
	pushq	%r14
	.cfi_def_cfa_offset 16
	pushq	%rbx
	.cfi_def_cfa_offset 24
	subq	$136, %rsp
	.cfi_def_cfa_offset 160
	.cfi_offset %rbx, -24
	.cfi_offset %r14, -16
	movq	160(%rsp), %rax
	movq	184(%rsp), %rcx
	movq	216(%rsp), %rsi
	movq	232(%rsp), %r10
	movq	%rdi, %rdx
	leaq	128(%rsp), %rdi
	movq	$0, 128(%rsp)
	movq	%r9, 8(%rsp)
	movq	%r8, (%rsp)
	movq	%rax, 16(%rsp)
	movabsq	$_ZN8__main__3q40B2v1B56c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAK4JJIqUWsIgmAA_3d_3dE5ArrayIfLi2E1C7mutable7alignedE5ArrayIhLi2E1C7mutable7alignedE, %rax
	movq	%r10, 88(%rsp)
	movq	%rsi, 72(%rsp)
	movq	%rcx, 40(%rsp)
	callq	*%rax
	movq	128(%rsp), %rcx
	movl	$0, 124(%rsp)
	testl	%eax, %eax
	jne	.LBB2_1
.LBB2_5:
	movq	%rcx, %rax
	addq	$136, %rsp
	.cfi_def_cfa_offset 24
	popq	%rbx
	.cfi_def_cfa_offset 16
	popq	%r14
	.cfi_def_cfa_offset 8
	retq
.LBB2_1:
	.cfi_def_cfa_offset 160
	movq	%rcx, %r14
	movabsq	$numba_gil_ensure, %rcx
	leaq	124(%rsp), %rdi
	movl	%eax, %ebx
	callq	*%rcx
	testl	%ebx, %ebx
	jg	.LBB2_2
	movl	%ebx, %eax
	cmpl	$-1, %ebx
	je	.LBB2_4
	cmpl	$-3, %eax
	jne	.LBB2_3
	movabsq	$PyExc_StopIteration, %rdi
	movabsq	$PyErr_SetNone, %rax
	callq	*%rax
	jmp	.LBB2_4
.LBB2_3:
	movabsq	$PyExc_SystemError, %rdi
	movabsq	$".const.unknown error when calling native function.2", %rsi
	movabsq	$PyErr_SetString, %rax
	callq	*%rax
.LBB2_4:
	movabsq	$".const.<numba.core.cpu.CPUContext>", %rdi
	movabsq	$PyUnicode_FromString, %rax
	callq	*%rax
	movq	%rax, %rbx
	movabsq	$PyErr_WriteUnraisable, %rax
	movq	%rbx, %rdi
	callq	*%rax
	movabsq	$Py_DecRef, %rax
	movq	%rbx, %rdi
	callq	*%rax
	movabsq	$numba_gil_release, %rax
	leaq	124(%rsp), %rdi
	callq	*%rax
	movq	%r14, %rcx
	jmp	.LBB2_5
.LBB2_2:
	movabsq	$PyErr_Clear, %rax
	callq	*%rax
.Lfunc_end2:
	.size	cfunc._ZN8__main__3q40B2v1B56c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAK4JJIqUWsIgmAA_3d_3dE5ArrayIfLi2E1C7mutable7alignedE5ArrayIhLi2E1C7mutable7alignedE, .Lfunc_end2-cfunc._ZN8__main__3q40B2v1B56c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAK4JJIqUWsIgmAA_3d_3dE5ArrayIfLi2E1C7mutable7alignedE5ArrayIhLi2E1C7mutable7alignedE
	.cfi_endproc

	.weak	NRT_incref
	.p2align	4
	.type	NRT_incref,@function
NRT_incref:
	testq	%rdi, %rdi
	je	.LBB3_2
	lock		incq	(%rdi)
.LBB3_2:
	retq
.Lfunc_end3:
	.size	NRT_incref, .Lfunc_end3-NRT_incref

	.weak	NRT_decref
	.p2align	4
	.type	NRT_decref,@function
NRT_decref:
	.cfi_startproc
	testq	%rdi, %rdi
	je	.LBB4_2
	#MEMBARRIER
	lock		decq	(%rdi)
	je	.LBB4_3
.LBB4_2:
	retq
.LBB4_3:
	movabsq	$NRT_MemInfo_call_dtor, %rax
	#MEMBARRIER
	jmpq	*%rax
.Lfunc_end4:
	.size	NRT_decref, .Lfunc_end4-NRT_decref
	.cfi_endproc

	.type	.const.q40,@object
	.section	.lrodata,"al",@progbits
.const.q40:
	.asciz	"q40"
	.size	.const.q40, 4

	.type	_ZN08NumbaEnv8__main__3q40B2v1B56c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAK4JJIqUWsIgmAA_3d_3dE5ArrayIfLi2E1C7mutable7alignedE5ArrayIhLi2E1C7mutable7alignedE,@object
	.comm	_ZN08NumbaEnv8__main__3q40B2v1B56c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAK4JJIqUWsIgmAA_3d_3dE5ArrayIfLi2E1C7mutable7alignedE5ArrayIhLi2E1C7mutable7alignedE,8,8
	.type	".const.missing Environment: _ZN08NumbaEnv8__main__3q40B2v1B56c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAK4JJIqUWsIgmAA_3d_3dE5ArrayIfLi2E1C7mutable7alignedE5ArrayIhLi2E1C7mutable7alignedE",@object
	.p2align	4, 0x0
".const.missing Environment: _ZN08NumbaEnv8__main__3q40B2v1B56c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAK4JJIqUWsIgmAA_3d_3dE5ArrayIfLi2E1C7mutable7alignedE5ArrayIhLi2E1C7mutable7alignedE":
	.asciz	"missing Environment: _ZN08NumbaEnv8__main__3q40B2v1B56c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAK4JJIqUWsIgmAA_3d_3dE5ArrayIfLi2E1C7mutable7alignedE5ArrayIhLi2E1C7mutable7alignedE"
	.size	".const.missing Environment: _ZN08NumbaEnv8__main__3q40B2v1B56c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAK4JJIqUWsIgmAA_3d_3dE5ArrayIfLi2E1C7mutable7alignedE5ArrayIhLi2E1C7mutable7alignedE", 174

	.type	".const.can't unbox array from PyObject into native value.  The object maybe of a different type",@object
	.p2align	4, 0x0
".const.can't unbox array from PyObject into native value.  The object maybe of a different type":
	.asciz	"can't unbox array from PyObject into native value.  The object maybe of a different type"
	.size	".const.can't unbox array from PyObject into native value.  The object maybe of a different type", 89

	.type	".const.unknown error when calling native function",@object
	.p2align	4, 0x0
".const.unknown error when calling native function":
	.asciz	"unknown error when calling native function"
	.size	".const.unknown error when calling native function", 43

	.type	".const.unknown error when calling native function.2",@object
	.p2align	4, 0x0
".const.unknown error when calling native function.2":
	.asciz	"unknown error when calling native function"
	.size	".const.unknown error when calling native function.2", 43

	.type	".const.<numba.core.cpu.CPUContext>",@object
	.p2align	4, 0x0
".const.<numba.core.cpu.CPUContext>":
	.asciz	"<numba.core.cpu.CPUContext>"
	.size	".const.<numba.core.cpu.CPUContext>", 28

	.type	_ZN08NumbaEnv5numba7cpython7numbers11scalar_view12_3clocals_3e4implB2v2B54c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAw4hWqFpgsIBZmgA_3dEf16class_28int32_29,@object
	.comm	_ZN08NumbaEnv5numba7cpython7numbers11scalar_view12_3clocals_3e4implB2v2B54c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAw4hWqFpgsIBZmgA_3dEf16class_28int32_29,8,8
	.type	_ZN08NumbaEnv5numba7cpython8builtins6ol_max12_3clocals_3e4implB2v3B54c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAw4hWqFpgsIBZmgA_3dE15StarArgUniTupleIiLi2EE,@object
	.comm	_ZN08NumbaEnv5numba7cpython8builtins6ol_max12_3clocals_3e4implB2v3B54c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAw4hWqFpgsIBZmgA_3dE15StarArgUniTupleIiLi2EE,8,8
	.type	_ZN08NumbaEnv5numba7cpython7numbers11scalar_view12_3clocals_3e4implB2v4B54c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAw4hWqFpgsIBZmgA_3dEi18class_28float32_29,@object
	.comm	_ZN08NumbaEnv5numba7cpython7numbers11scalar_view12_3clocals_3e4implB2v4B54c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAw4hWqFpgsIBZmgA_3dEi18class_28float32_29,8,8
	.type	_ZN08NumbaEnv5numba7cpython8builtins6ol_min12_3clocals_3e4implB2v5B54c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAw4hWqFpgsIBZmgA_3dE15StarArgUniTupleIiLi2EE,@object
	.comm	_ZN08NumbaEnv5numba7cpython8builtins6ol_min12_3clocals_3e4implB2v5B54c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAw4hWqFpgsIBZmgA_3dE15StarArgUniTupleIiLi2EE,8,8
	.type	_ZN08NumbaEnv8__main__10f32_to_f16B2v6B44c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAK4JIagIAEf,@object
	.comm	_ZN08NumbaEnv8__main__10f32_to_f16B2v6B44c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAK4JIagIAEf,8,8
	.type	_ZN08NumbaEnv5numba7cpython7numbers11scalar_view12_3clocals_3e4implB2v7B54c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAw4hWqFpgsIBZmgA_3dEf17class_28uint32_29,@object
	.comm	_ZN08NumbaEnv5numba7cpython7numbers11scalar_view12_3clocals_3e4implB2v7B54c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAw4hWqFpgsIBZmgA_3dEf17class_28uint32_29,8,8
	.type	_ZN08NumbaEnv5numba7cpython7numbers11scalar_view12_3clocals_3e4implB2v8B54c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAw4hWqFpgsIBZmgA_3dEj18class_28float32_29,@object
	.comm	_ZN08NumbaEnv5numba7cpython7numbers11scalar_view12_3clocals_3e4implB2v8B54c8tJTIeFIjxB2IKSgI4CrvQCk0Z4yRYcWsBAw4hWqFpgsIBZmgA_3dEj18class_28float32_29,8,8
	.section	".note.GNU-stack","",@progbits
