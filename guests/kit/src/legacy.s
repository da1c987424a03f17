# The way from long mode to 32-bit protected mode (paging off, two-level or PAE) and back.

    .text
    .code64
# extern "C" fn kit_legacy(record): see legacy.rs for the record's layout.
    .global kit_legacy
kit_legacy:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    pushfq
    cli
    mov [kit_legacy_stack], rsp
    mov [kit_legacy_record], rdi
    sgdt [kit_legacy_old_gdt]
    sidt [kit_legacy_old_idt]
    mov rax, cr4
    mov [kit_legacy_old_cr4], rax
    mov rax, cr0
    mov [kit_legacy_old_cr0], rax
    mov rax, cr3
    mov [kit_legacy_old_cr3], rax
    lgdt [kit_legacy_gdtr]
    lidt [kit_legacy_idtr]
    lea rsp, [kit_legacy_stack_top]
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    push 0x18
    lea rax, [kit_legacy_down]
    push rax
    retfq

    .code32
kit_legacy_down:
    mov eax, cr0
    and eax, 0x7FFFFFFF
    mov cr0, eax
    mov ecx, 0xC0000080
    rdmsr
    and eax, 0xFFFFFEFF
    wrmsr
    mov esi, dword ptr [kit_legacy_record]
    mov eax, dword ptr [esi + 8]
    mov cr4, eax
    mov eax, dword ptr [esi + 4]
    test eax, eax
    jz .Llegacy_flat
    mov cr3, eax
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
.Llegacy_flat:
    # The task may be busy from the last excursion.
    and byte ptr [kit_legacy_gdt + 0x48 + 5], 0xFD
    mov eax, 0x48
    ltr ax
    xor eax, eax
    lldt ax
    mov ebp, dword ptr [esi]
    mov eax, dword ptr [esi + 12]
    xor ebx, ebx
    xor ecx, ecx
    xor edx, edx
    xor edi, edi
    call ebp
    mov esi, dword ptr [kit_legacy_record]
    mov dword ptr [esi + 16], eax
    mov dword ptr [esi + 20], -1
    jmp kit_legacy_up

# Exceptions: the frame is handed over, the rest of the code is abandoned.
    .global kit_legacy_exception
kit_legacy_exception:
    # [esp] vector, +4 error code, +8 EIP, +12 CS, +16 EFLAGS, +20 ESP, +24 SS
    cld
    push eax
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov esi, dword ptr [kit_legacy_record]
    mov eax, dword ptr [esp]
    mov dword ptr [esi + 16], eax
    mov eax, dword ptr [esp + 4]
    mov dword ptr [esi + 20], eax
    mov eax, dword ptr [esp + 8]
    mov dword ptr [esi + 24], eax
    mov eax, dword ptr [esp + 12]
    mov dword ptr [esi + 28], eax
    mov eax, dword ptr [esp + 16]
    mov dword ptr [esi + 32], eax
    mov eax, dword ptr [esp + 20]
    mov dword ptr [esi + 36], eax
    mov eax, dword ptr [esp + 24]
    mov dword ptr [esi + 40], eax
    mov eax, dword ptr [esp + 28]
    mov dword ptr [esi + 44], eax
    mov eax, cr2
    mov dword ptr [esi + 48], eax
    mov dword ptr [esi + 52], esp

    .global kit_legacy_up
kit_legacy_up:
    cli
    mov eax, 0x10
    mov ss, eax
    mov ds, eax
    mov es, eax
    xor eax, eax
    mov fs, eax
    mov gs, eax
    mov esp, offset kit_legacy_stack_top
    pushfd
    and dword ptr [esp], 0xFFFFBFFF
    popfd
    mov eax, cr0
    and eax, 0x7FFFFFFF
    mov cr0, eax
    mov eax, dword ptr [kit_legacy_old_cr4]
    mov cr4, eax
    mov eax, dword ptr [kit_legacy_old_cr3]
    mov cr3, eax
    mov ecx, 0xC0000080
    rdmsr
    or eax, 0x100
    wrmsr
    mov eax, dword ptr [kit_legacy_old_cr0]
    mov cr0, eax
    .byte 0xEA
    .long kit_legacy_back
    .word 0x08

    .code64
kit_legacy_back:
    lgdt [kit_legacy_old_gdt]
    lidt [kit_legacy_old_idt]
    mov rsp, [kit_legacy_stack]
    mov eax, 0x10
    mov ss, eax
    mov ds, eax
    mov es, eax
    popfq
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

# Real mode: copied below 1 MiB, called in 32-bit protected mode with paging off.
# EAX is the linear address (below 64 KiB) of 16-bit code that ends with a near return and leaves
# its result in AX, which comes back in EAX. The words at 0x500 tell the vector that ended it
# instead (or 0xFFFF) and what the interrupt pushed.
    .code32
    .global kit_real_call
kit_real_call:
    push ebx
    push ebp
    mov dword ptr [kit_real_stack], esp
    sidt [kit_real_idt]
    mov ebx, eax
    .byte 0xEA
    .long 0x9000
    .word 0x38

    .code16
    .global kit_real_code, kit_real_code_end
kit_real_code:
.Lreal_code:
    # 16-bit protected mode at linear 0x9000, in a segment with base 0.
    mov ax, 0x40
    mov ds, ax
    mov es, ax
    mov ss, ax
    .byte 0x66, 0x0F, 0x01, 0x1E
    .word 0x9000 + .Lreal_idtr - .Lreal_code
    mov eax, cr0
    and eax, 0xFFFFFFFE
    mov cr0, eax
    .byte 0xEA
    .word 0x9000 + .Lreal_entry - .Lreal_code
    .word 0
.Lreal_entry:
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov sp, 0x7FF0
    mov word ptr [0x500], 0xFFFF
    call bx
    mov word ptr [0x50A], ax
.Lreal_leave:
    cli
    mov eax, cr0
    or eax, 1
    mov cr0, eax
    .byte 0x66, 0xEA
    .long kit_real_back
    .word 0x18
.Lreal_idtr:
    .word 0x3FF
    .long 0
    # Real-mode interrupts come here from their stubs, the vector in AX.
    .global kit_real_handler
kit_real_handler:
    xor cx, cx
    mov ds, cx
    mov word ptr [0x500], ax
    # Frame: IP, CS, FLAGS at SP.
    pop cx
    mov word ptr [0x502], cx
    pop cx
    mov word ptr [0x504], cx
    pop cx
    mov word ptr [0x506], cx
    mov word ptr [0x508], sp
    xor cx, cx
    mov ss, cx
    mov sp, 0x7FF0
    jmp .Lreal_leave
kit_real_code_end:

    .code32
kit_real_back:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov esp, dword ptr [kit_real_stack]
    lidt [kit_real_idt]
    pop ebp
    pop ebx
    ret
    .code64

    .section .data.legacy, "aw"
    .balign 16
    .global kit_legacy_gdt
kit_legacy_gdt:
    .quad 0
    .quad 0x00AF9B000000FFFF
    .quad 0x00CF93000000FFFF
    .quad 0x00CF9B000000FFFF
    .quad 0x00CFFB000000FFFF
    .quad 0x00CFF3000000FFFF
    .quad 0
    .quad 0x00009B000000FFFF
    .quad 0x000093000000FFFF
    # 0x48: the task of the excursion; from 0x50: free for tests.
    .fill 23, 8, 0
kit_legacy_gdt_end:
    .balign 8
kit_legacy_gdtr:
    .word kit_legacy_gdt_end - kit_legacy_gdt - 1
    .quad kit_legacy_gdt
    .balign 8
kit_legacy_idtr:
    .word 0x7FF
    .quad kit_legacy_idt

    .section .bss.legacy, "aw", @nobits
    .balign 16
    .global kit_legacy_idt, kit_legacy_stack_top, kit_legacy_tss
kit_legacy_idt:
    .skip 2048
kit_legacy_stack: .skip 8
kit_legacy_record: .skip 8
kit_legacy_old_gdt: .skip 16
kit_legacy_old_idt: .skip 16
kit_legacy_old_cr0: .skip 8
kit_legacy_old_cr3: .skip 8
kit_legacy_old_cr4: .skip 8
kit_real_stack: .skip 8
kit_real_idt: .skip 16
kit_legacy_tss: .skip 256
    .skip 16384
kit_legacy_stack_top:
    .skip 16
    .text
