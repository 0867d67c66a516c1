//! Whether the programs fit into the stack that the verifiers of all kernels grant.
//!
//! 512 B are shared by all functions that are under way at once, and old kernels round what each
//! takes up to 32 B. A program that goes beyond is refused there alone, so this is worked out
//! from the object.

use std::collections::{BTreeMap, BTreeSet};

use object::{
    Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SectionKind, SymbolKind,
};

use super::object::OBJECT;

/// What a program may use with everything that it calls.
const STACK: u32 = 512;
/// What frames are rounded up to.
const GRAIN: u32 = 32;

/// An instruction as it is encoded.
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    destination: u8,
    source: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    fn read(bytes: &[u8]) -> Self {
        Self {
            code: bytes[0],
            destination: bytes[1] & 15,
            source: bytes[1] >> 4,
            offset: i16::from_le_bytes([bytes[2], bytes[3]]),
            immediate: i32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        }
    }

    /// How far below the frame pointer it reaches, `next` being the one behind it.
    fn depth(self, next: Option<&Self>) -> u32 {
        const FRAME: u8 = 10;
        let below = match self.code & 7 {
            // Load; store of a constant, of a register.
            1 if self.source == FRAME => self.offset.into(),
            2 | 3 if self.destination == FRAME => self.offset.into(),
            // A copy of the frame pointer, and what is added to it.
            7 if self.code == 0xbf && self.source == FRAME => match next {
                Some(next) if next.code == 0x07 && next.destination == self.destination => {
                    next.immediate
                }
                Some(_) | None => 0,
            },
            _ => 0,
        };
        if below < 0 { below.unsigned_abs() } else { 0 }
    }
}

/// Where a function is: its section, and the byte that it begins with.
type Place = (usize, u64);

struct Function {
    name: String,
    depth: u32,
    calls: BTreeSet<Place>,
}

/// Every function of an object, with the functions that it calls or has the kernel call.
fn functions(bytes: &[u8]) -> BTreeMap<Place, Function> {
    let file = object::File::parse(bytes).expect("an ELF file");
    let mut functions = BTreeMap::new();
    for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text) {
        let index = symbol.section_index().expect("a function is in a section");
        let section = file.section_by_index(index).expect("the section of a symbol");
        assert_eq!(section.kind(), SectionKind::Text);
        let relocations: BTreeMap<u64, RelocationTarget> =
            section.relocations().map(|(at, relocation)| (at, relocation.target())).collect();
        let data = section.data().expect("a section has its bytes");
        let body = &data[symbol.address() as usize..][..symbol.size() as usize];
        let body: Vec<Instruction> = body.chunks_exact(8).map(Instruction::read).collect();

        let mut function = Function {
            name: symbol.name().unwrap_or_default().to_owned(),
            depth: 0,
            calls: BTreeSet::new(),
        };
        for (number, instruction) in body.iter().enumerate() {
            function.depth = function.depth.max(instruction.depth(body.get(number + 1)));
            let at = symbol.address() + 8 * number as u64;
            let immediate = i64::from(instruction.immediate);
            // Calls count instructions from the next one on, addresses count bytes.
            let inside = match (instruction.code, instruction.source) {
                (0x85, 1) => 8 * (immediate + 1),
                (0x18, _) => immediate,
                _ => continue,
            };
            match relocations.get(&at) {
                Some(RelocationTarget::Symbol(target)) => {
                    let target = file.symbol_by_index(*target).expect("a symbol that is meant");
                    let Some(section) = target.section_index() else { continue };
                    if target.kind() == SymbolKind::Text {
                        function.calls.insert((section.0, target.address()));
                    } else if target.kind() == SymbolKind::Section
                        && file
                            .section_by_index(section)
                            .is_ok_and(|s| s.kind() == SectionKind::Text)
                    {
                        function.calls.insert((section.0, inside as u64));
                    }
                }
                None if instruction.code == 0x85 => {
                    function.calls.insert((index.0, (at as i64 + inside) as u64));
                }
                Some(_) | None => {}
            }
        }
        functions.insert((index.0, symbol.address()), function);
    }
    functions
}

/// The deepest chain of calls from a function on: bytes, and names with what each takes.
fn deepest(functions: &BTreeMap<Place, Function>, place: Place) -> (u32, Vec<String>) {
    let function = functions.get(&place).unwrap_or_else(|| panic!("no function at {place:?}"));
    let own = function.depth.max(1).next_multiple_of(GRAIN);
    let inner = function.calls.iter().map(|call| deepest(functions, *call));
    let (below, mut chain) = inner.max_by_key(|(bytes, _)| *bytes).unwrap_or_default();
    chain.insert(0, format!("{own} {}", function.name));
    (own + below, chain)
}

#[test]
fn every_program_fits_into_the_stack_of_old_kernels() {
    let functions = functions(OBJECT);
    let called: BTreeSet<Place> =
        functions.values().flat_map(|function| function.calls.iter().copied()).collect();
    // The work of opening a session is in functions: a chain that is not seen is no proof.
    assert!(called.len() > 20, "{} functions are called", called.len());
    let programs: Vec<Place> =
        functions.keys().copied().filter(|place| !called.contains(place)).collect();
    assert!(programs.len() >= 15, "{} programs", programs.len());
    for program in programs {
        let (bytes, chain) = deepest(&functions, program);
        assert!(bytes <= STACK, "{bytes} B: {chain:#?}");
    }
}

#[test]
fn what_an_instruction_reaches_below_the_frame_pointer() {
    let add = Instruction { code: 0x07, destination: 2, source: 0, offset: 0, immediate: -24 };
    let table = [
        ("r1 = *(u64 *)(r10 - 16)", [0x79, 0xa1, 0xf0, 0xff, 0, 0, 0, 0], 16),
        ("*(u32 *)(r10 - 4) = r1", [0x63, 0x1a, 0xfc, 0xff, 0, 0, 0, 0], 4),
        ("*(u64 *)(r10 - 8) = 0", [0x7a, 0x0a, 0xf8, 0xff, 0, 0, 0, 0], 8),
        ("r2 = r10, r2 += -24", [0xbf, 0xa2, 0, 0, 0, 0, 0, 0], 24),
        ("r3 = r10, r2 += -24", [0xbf, 0xa3, 0, 0, 0, 0, 0, 0], 0),
        ("*(u64 *)(r1 - 8) = r10", [0x7b, 0xa1, 0xf8, 0xff, 0, 0, 0, 0], 0),
        ("r1 = *(u64 *)(r9 - 16)", [0x79, 0x91, 0xf0, 0xff, 0, 0, 0, 0], 0),
    ];
    for (text, bytes, expected) in table {
        assert_eq!(Instruction::read(&bytes).depth(Some(&add)), expected, "{text}");
    }
}
