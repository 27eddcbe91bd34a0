//! A program of eBPF as loaders take it: an ELF file with two instructions, by which all frames pass.

/// The section that the program is in.
pub(crate) const SECTION: &str = "xdp";

/// Sections of the file, after the one that is none.
const SECTIONS: [(&str, Kind); 5] = [
    (SECTION, Kind::Code),
    ("license", Kind::Data),
    (".symtab", Kind::Symbols),
    (".strtab", Kind::Names),
    (".shstrtab", Kind::Names),
];
/// Where the names of symbols and of sections are.
const SYMBOL_NAMES: u32 = 4;
const SECTION_NAMES: u16 = 5;
const HEADER: usize = 64;

#[derive(Clone, Copy)]
enum Kind {
    Code,
    Data,
    Symbols,
    Names,
}

impl Kind {
    /// `sh_type`, `sh_flags`, `sh_link`, `sh_info`, `sh_entsize`.
    fn of_header(self) -> (u32, u64, u32, u32, u64) {
        match self {
            Kind::Code => (1, 6, 0, 0, 0),
            Kind::Data => (1, 3, 0, 0, 0),
            // The first symbol that is of the whole file is the second.
            Kind::Symbols => (2, 0, SYMBOL_NAMES, 1, 24),
            Kind::Names => (3, 0, 0, 0, 0),
        }
    }
}

/// The file.
pub(crate) fn pass() -> Vec<u8> {
    // r0 = XDP_PASS; exit.
    let code = [0xb7, 0, 0, 0, 2, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0];
    let mut symbols = vec![0; 24];
    symbols.extend(1_u32.to_le_bytes());
    // A function of the whole file, in the first section.
    symbols.extend([0x12, 0, 1, 0]);
    symbols.extend(0_u64.to_le_bytes());
    symbols.extend((code.len() as u64).to_le_bytes());
    let names = SECTIONS.map(|(name, _)| name);
    let section_names = format!("\0{}\0", names.join("\0"));
    let contents: [&[u8]; 5] = [
        &code,
        b"GPL\0",
        &symbols,
        b"\0pass\0",
        section_names.as_bytes(),
    ];

    let mut file = vec![0; HEADER];
    // The section that is none.
    let mut headers = vec![0; HEADER];
    for ((name, kind), content) in SECTIONS.iter().zip(contents) {
        file.resize(file.len().next_multiple_of(8), 0);
        let (sort, flags, link, info, entry) = kind.of_header();
        let place = section_names.find(&format!("\0{name}\0")).expect("above") + 1;
        headers.extend(u32::try_from(place).expect("short").to_le_bytes());
        headers.extend(sort.to_le_bytes());
        let numbers = [flags, 0, file.len() as u64, content.len() as u64];
        headers.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        headers.extend([link, info].iter().flat_map(|number| number.to_le_bytes()));
        headers.extend(
            [8, entry]
                .iter()
                .flat_map(|number: &u64| number.to_le_bytes()),
        );
        file.extend(content);
    }
    file.resize(file.len().next_multiple_of(8), 0);
    let at = file.len() as u64;
    file.extend(headers);
    // An object of 64 bits, little-endian, for BPF (247).
    file[..8].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0]);
    file[16..24].copy_from_slice(&[1, 0, 247, 0, 1, 0, 0, 0]);
    file[40..48].copy_from_slice(&at.to_le_bytes());
    let sizes: [u16; 6] = [64, 0, 0, 64, 6, SECTION_NAMES];
    for (place, size) in (52..).step_by(2).zip(sizes) {
        file[place..place + 2].copy_from_slice(&size.to_le_bytes());
    }
    file
}
