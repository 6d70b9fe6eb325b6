//! Honest debug information, put together by gimli, and the other kind, put together byte by byte.

use std::collections::HashMap;

use gimli::write::{
    self, Address, AttributeValue as Written, DebugInfoRef, EndianVec, LineProgram, LineString,
    Range as Extent, RangeList, UnitEntryId,
};
use gimli::{Encoding, Format, LineEncoding};

use super::*;

const STEPS: u64 = 1 << 22;

type Sections = HashMap<SectionId, Vec<u8>>;

fn look_up(sections: &Sections, addresses: &[u64], steps: u64) -> (Result<()>, Vec<Vec<Symbol>>) {
    let work = Work::new(steps);
    let mut probes: Vec<Probe<'_>> = addresses.iter().map(|address| Probe::new(*address)).collect();
    let done =
        Reading::new(|id| section(sections, id), &work).and_then(|reading| reading.look_up(&mut probes));
    (done, probes.into_iter().map(|probe| probe.symbols).collect())
}

fn section(sections: &Sections, id: SectionId) -> &[u8] {
    sections.get(&id).map_or(&[], Vec::as_slice)
}

/// What is found at one address, as `function file:line`, innermost first.
#[track_caller]
fn found(sections: &Sections, address: u64) -> Vec<String> {
    let (done, mut symbols) = look_up(sections, &[address], STEPS);
    assert_eq!(done, Ok(()));
    let text = |symbol: Symbol| {
        let file = symbol.file.unwrap_or_else(|| "-".to_owned());
        let line = symbol.line.map_or_else(|| "-".to_owned(), |line| line.to_string());
        format!("{} {file}:{line}", symbol.function.unwrap_or_else(|| "-".to_owned()))
    };
    symbols.remove(0).into_iter().map(text).collect()
}

/// A unit as a compiler writes it: `outer` at 0x10 to 0x30 and 0x50 to 0x60, with `inner` inlined at 0x18 to 0x28 and
/// `innermost` inlined there at 0x1c to 0x20. `innermost` is described in a unit of its own.
fn honest(version: u16) -> Sections {
    let encoding = Encoding { format: Format::Dwarf32, version, address_size: 4 };
    let mut dwarf = write::Dwarf::new();
    let strings = &mut dwarf.line_strings;
    let mut text = |text: &str| LineString::new(text, encoding, strings);
    let mut lines =
        LineProgram::new(encoding, LineEncoding::default(), text("/build"), None, text("src/lib.rs"), None);
    let folder = lines.add_directory(text("/rustc/core"));
    let built = lines.default_directory();
    let [own, other] = [("src/lib.rs", built), ("option.rs", folder)].map(|(name, folder)| {
        let name = text(name);
        lines.add_file(name, folder, None)
    });
    lines.begin_sequence(Some(Address::Constant(0x10)));
    for (offset, file, line) in [(0, own, 5), (8, own, 20), (0xc, other, 7), (0x10, own, 21), (0x18, own, 8)]
    {
        let row = lines.row();
        (row.address_offset, row.file, row.line) = (offset, file, line);
        lines.generate_row();
    }
    lines.end_sequence(0x20);
    let elsewhere = dwarf.units.add(write::Unit::new(encoding, LineProgram::none()));
    let unit = dwarf.units.add(write::Unit::new(encoding, lines));
    let innermost = {
        let unit = dwarf.units.get_mut(elsewhere);
        let root = unit.root();
        let entry = unit.add(root, constants::DW_TAG_subprogram);
        set(
            unit,
            entry,
            &[(constants::DW_AT_linkage_name, Written::String(b"_ZN4core9innermostE".to_vec()))],
        );
        DebugInfoRef::Entry(elsewhere, entry)
    };
    let name = dwarf.strings.add("outer");
    let unit = dwarf.units.get_mut(unit);
    let root = unit.root();
    set(unit, root, &[(constants::DW_AT_comp_dir, Written::String(b"/build".to_vec()))]);
    let extent =
        |begin, end| Extent::StartEnd { begin: Address::Constant(begin), end: Address::Constant(end) };
    let pieces = |unit: &mut write::Unit, pieces: &[(u64, u64)]| {
        let list = pieces.iter().map(|(begin, end)| extent(*begin, *end)).collect();
        (constants::DW_AT_ranges, Written::RangeListRef(unit.ranges.add(RangeList(list))))
    };
    let all = pieces(unit, &[(0x10, 0x30), (0x50, 0x60)]);
    set(unit, root, &[(constants::DW_AT_low_pc, Written::Address(Address::Constant(0))), all.clone()]);
    let declared = unit.add(root, constants::DW_TAG_subprogram);
    set(unit, declared, &[(constants::DW_AT_name, Written::String(b"inner".to_vec()))]);
    let outer = unit.add(root, constants::DW_TAG_subprogram);
    set(unit, outer, &[(constants::DW_AT_name, Written::StringRef(name)), all]);
    let block = unit.add(outer, constants::DW_TAG_lexical_block);
    let inner = unit.add(block, constants::DW_TAG_inlined_subroutine);
    let low = |address| (constants::DW_AT_low_pc, Written::Address(Address::Constant(address)));
    let bytes = |bytes| (constants::DW_AT_high_pc, Written::Udata(bytes));
    let called = |line| {
        let file = (constants::DW_AT_call_file, Written::FileIndex(Some(own)));
        [file, (constants::DW_AT_call_line, Written::Udata(line))]
    };
    set(
        unit,
        inner,
        &[(constants::DW_AT_abstract_origin, Written::UnitRef(declared)), low(0x18), bytes(0x10)],
    );
    set(unit, inner, &called(6));
    let deepest = unit.add(inner, constants::DW_TAG_inlined_subroutine);
    let origin = (constants::DW_AT_abstract_origin, Written::DebugInfoRef(innermost));
    set(unit, deepest, &[origin, low(0x1c), bytes(4)]);
    set(unit, deepest, &called(20));
    written(&mut dwarf)
}

fn written(dwarf: &mut write::Dwarf) -> Sections {
    let mut written = write::Sections::new(EndianVec::new(LittleEndian));
    dwarf.write(&mut written).unwrap();
    let mut sections = Sections::new();
    let keep = |id, bytes: &EndianVec<_>| {
        sections.insert(id, bytes.slice().to_vec());
        write::Result::Ok(())
    };
    written.for_each(keep).unwrap();
    sections
}

fn set(unit: &mut write::Unit, entry: UnitEntryId, attributes: &[(DwAt, Written)]) {
    for (name, value) in attributes {
        unit.get_mut(entry).set(*name, value.clone());
    }
}

#[test]
fn functions_inlined_ones_files_and_lines_are_found() {
    for version in [3, 4, 5] {
        let sections = honest(version);
        assert_eq!(found(&sections, 0x12), ["outer /build/src/lib.rs:5"], "version {version}");
        assert_eq!(found(&sections, 0x18), ["inner /build/src/lib.rs:20", "outer /build/src/lib.rs:6"]);
        let all = [
            "core::innermost /rustc/core/option.rs:7",
            "inner /build/src/lib.rs:20",
            "outer /build/src/lib.rs:6",
        ];
        assert_eq!(found(&sections, 0x1c), all, "version {version}");
        assert_eq!(found(&sections, 0x1f), all);
        assert_eq!(found(&sections, 0x20), ["inner /build/src/lib.rs:21", "outer /build/src/lib.rs:6"]);
        assert_eq!(found(&sections, 0x2f), ["outer /build/src/lib.rs:8"]);
        // A function whose lines are not told; and where there is none.
        assert_eq!(found(&sections, 0x50), ["outer -:-"], "version {version}");
        for address in [0, 0xf, 0x30, 0x4f, 0x60, u64::MAX] {
            assert_eq!(found(&sections, address), [""; 0], "version {version}, {address:#x}");
        }
        let (done, symbols) = look_up(&sections, &[0x12, 0x1c, 0x40], STEPS);
        assert_eq!((done, symbols.iter().map(Vec::len).collect()), (Ok(()), vec![1, 3, 0]));
    }
}

#[test]
fn sections_that_are_missing_leave_names_or_nothing() {
    let without = |id| {
        let mut sections = honest(4);
        sections.remove(&id);
        found(&sections, 0x18)
    };
    assert_eq!(without(SectionId::DebugLine), ["inner -:-", "outer -:-"]);
    assert_eq!(without(SectionId::DebugStr), ["inner /build/src/lib.rs:20", "- /build/src/lib.rs:6"]);
    for id in [SectionId::DebugInfo, SectionId::DebugAbbrev, SectionId::DebugRanges] {
        assert_eq!(without(id), [""; 0], "{id:?}");
    }
}

#[test]
fn work_that_is_used_up_ends_a_reading() {
    let sections = honest(5);
    let spent = {
        let work = Work::new(STEPS);
        let mut probes = [Probe::new(0x1c)];
        let reading = Reading::new(|id| section(&sections, id), &work).unwrap();
        assert_eq!(reading.look_up(&mut probes), Ok(()));
        STEPS - work.left()
    };
    assert!(spent < 10_000, "{spent}");
    let symbols_with = |steps| look_up(&sections, &[0x1c], steps);
    assert_eq!(symbols_with(spent).1[0].len(), 3);
    for steps in [0, 1, spent / 2, spent - 1] {
        assert_eq!(symbols_with(steps), (Err(Trouble::Exhausted), vec![Vec::new()]), "{steps} of {spent}");
    }
}

/// A generator of its own, so that a seed means the same everywhere.
fn random(state: &mut u64) -> usize {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 33) as usize
}

#[test]
fn damaged_debug_information_never_panics() {
    let honest = [honest(4), honest(5)];
    let mut found = 0;
    for seed in 0..20_000 {
        let mut state = seed;
        let mut sections = honest[random(&mut state) % 2].clone();
        let mut ids: Vec<SectionId> =
            sections.keys().copied().filter(|id| !sections[id].is_empty()).collect();
        ids.sort_unstable_by_key(|id| id.name());
        for _ in 0..=random(&mut state) % 4 {
            let bytes = sections.get_mut(&ids[random(&mut state) % ids.len()]).unwrap();
            let at = random(&mut state) % bytes.len();
            bytes[at] = if random(&mut state).is_multiple_of(2) { random(&mut state) as u8 } else { 0xff };
        }
        let looked_up = std::panic::catch_unwind(|| look_up(&sections, &[0x12, 0x18, 0x1c, 0x50], STEPS).1);
        let symbols = looked_up.unwrap_or_else(|_| panic!("seed {seed} panicked"));
        found += symbols.iter().filter(|symbols| !symbols.is_empty()).count();
    }
    assert!(found > 20_000, "{found}: the mutants are no longer debug information at all");
}

/// Attributes with their forms: an address, four bytes of length, and so on.
const LOW: (u8, u8) = (0x11, 0x01);
const HIGH: (u8, u8) = (0x12, 0x06);
const LINES: (u8, u8) = (0x10, 0x17);
const RANGES: (u8, u8) = (0x55, 0x17);
const NAME: (u8, u8) = (0x03, 0x08);
/// A name in a section of names.
const STRING: (u8, u8) = (0x03, 0x0e);
const ORIGIN: (u8, u8) = (0x31, 0x13);
/// Takes no bytes at all.
const FLAG: (u8, u8) = (0x34, 0x19);

const UNIT: u8 = 0x11;
const FUNCTION: u8 = 0x2e;
const INLINED: u8 = 0x1d;
const BLOCK: u8 = 0x0b;

/// Entries with children, by code: see [`forged`].
fn abbreviation(code: u8, tag: u8, attributes: &[(u8, u8)]) -> Vec<u8> {
    let mut bytes = vec![code, tag, 1];
    attributes.iter().for_each(|(name, form)| bytes.extend([*name, *form]));
    bytes.extend([0, 0]);
    bytes
}

/// A unit of version 4 that begins with these entries.
fn unit(table: u32, entries: &[u8]) -> Vec<u8> {
    let mut bytes = (7 + entries.len() as u32).to_le_bytes().to_vec();
    bytes.extend([4, 0]);
    bytes.extend(table.to_le_bytes());
    bytes.push(4);
    bytes.extend(entries);
    bytes
}

fn entry(code: u8, numbers: &[u32]) -> Vec<u8> {
    let mut bytes = vec![code];
    numbers.iter().for_each(|number| bytes.extend(number.to_le_bytes()));
    bytes
}

/// Debug information of these units, whose entries are: 1 a unit from an address on, 2 a function, 3 an inlined
/// function, 4 a block, 5 a function `f`, 6 a function named elsewhere, 7 a unit with lines, 8 a unit of pieces.
fn forged(units: &[Vec<u8>]) -> Sections {
    let table = [
        abbreviation(1, UNIT, &[LOW, HIGH]),
        abbreviation(2, FUNCTION, &[LOW, HIGH]),
        abbreviation(3, INLINED, &[LOW, HIGH]),
        abbreviation(4, BLOCK, &[]),
        abbreviation(5, FUNCTION, &[NAME, LOW, HIGH]),
        abbreviation(6, FUNCTION, &[ORIGIN, LOW, HIGH]),
        abbreviation(7, UNIT, &[LOW, HIGH, LINES]),
        abbreviation(8, UNIT, &[RANGES]),
        vec![0],
    ];
    Sections::from([(SectionId::DebugAbbrev, table.concat()), (SectionId::DebugInfo, units.concat())])
}

/// The function `f` from 0x10 to 0x20.
fn function_f() -> Vec<u8> {
    [&[5, b'f', 0][..], &0x10_u32.to_le_bytes(), &0x10_u32.to_le_bytes()].concat()
}

fn good_unit() -> Vec<u8> {
    unit(0, &[entry(1, &[0x10, 0x100]), function_f()].concat())
}

#[test]
fn a_damaged_unit_is_passed_over() {
    let unknown_code = unit(0, &[entry(1, &[0x10, 0x100]), vec![99]].concat());
    let no_table = unit(1 << 20, &entry(1, &[0x10, 0x100]));
    let cut_short = unit(0, &[1, 2, 3]);
    let lines_nowhere = unit(0, &[entry(7, &[0x10, 0x100, 1 << 30]), function_f()].concat());
    for damaged in [unknown_code, no_table, cut_short, lines_nowhere] {
        let sections = forged(&[damaged, good_unit()]);
        assert_eq!(found(&sections, 0x15), ["f -:-"]);
    }
    // Behind a length that leads nowhere, nothing is found again.
    let lost = forged(&[good_unit(), vec![0xf0, 0xff, 0xff, 0x00, 4, 0], good_unit()]);
    assert_eq!(found(&lost, 0x15), ["f -:-"]);
}

#[test]
fn what_linkers_leave_behind_of_removed_code_is_not_believed() {
    let removed = [&[5, b'g', 0][..], &0_u32.to_le_bytes(), &0x100_u32.to_le_bytes()].concat();
    let units = [unit(0, &[entry(1, &[0, 0x100]), removed.clone()].concat())];
    assert_eq!(found(&forged(&units), 0x15), [""; 0]);
    let units = [unit(0, &[entry(1, &[1, 0x100]), removed, vec![0], function_f()].concat())];
    assert_eq!(found(&forged(&units), 0x15), ["f -:-"]);
}

#[test]
fn entries_may_be_nested_to_any_depth() {
    // A walk that calls itself would need hundreds of megabytes of stack.
    let mut entries = [entry(1, &[0x10, 0x100]), function_f()].concat();
    entries.extend([4].repeat(4_000_000));
    entries.extend(entry(3, &[0x10, 0x10]));
    let (done, symbols) = look_up(&forged(&[unit(0, &entries)]), &[0x15], 1 << 26);
    assert_eq!((done, symbols[0].len()), (Ok(()), 2));
}

#[test]
fn functions_inlined_into_each_other_stop_at_their_number() {
    let nested = |count: usize| {
        let mut entries = [entry(1, &[0x10, 0x100]), function_f()].concat();
        entries.extend(entry(3, &[0x10, 0x10]).repeat(count));
        found(&forged(&[unit(0, &entries)]), 0x15).len()
    };
    assert_eq!(nested(3), 4);
    assert_eq!(nested(BACKTRACE_FRAMES_MAX + 10), BACKTRACE_FRAMES_MAX);
    assert_eq!(nested(INLINED_MAX - 1), BACKTRACE_FRAMES_MAX);
    assert_eq!(nested(INLINED_MAX), 0);
}

#[test]
fn a_name_is_followed_so_far_and_no_further() {
    let chain = |count: usize| {
        // Each names the next; the last names itself or has a name.
        let mut entries = entry(1, &[0x10, 0x100]);
        for _ in 0..count {
            let next = 11 + entries.len() as u32 + 13;
            entries.extend(entry(6, &[next, 0x10, 0x10]));
        }
        entries.extend(function_f());
        found(&forged(&[unit(0, &entries)]), 0x15)
    };
    assert_eq!(chain(1), ["f -:-"]);
    assert_eq!(chain(ORIGINS_MAX), ["f -:-"]);
    assert_eq!(chain(ORIGINS_MAX + 1), ["- -:-"]);
    let circle = [entry(1, &[0x10, 0x100]), entry(6, &[20, 0x10, 0x10])].concat();
    assert_eq!(found(&forged(&[unit(0, &circle)]), 0x15), ["- -:-"]);
}

#[test]
fn attributes_of_an_entry_stop_at_their_number() {
    let with = |count: usize| {
        let mut sections = forged(&[unit(0, &[entry(1, &[0x10, 0x100]), vec![9], function_f()].concat())]);
        let table = sections.get_mut(&SectionId::DebugAbbrev).unwrap();
        table.pop();
        table.extend(abbreviation(9, BLOCK, &[FLAG].repeat(count)));
        table.push(0);
        found(&sections, 0x15).len()
    };
    assert_eq!(with(ATTRIBUTES_MAX), 1);
    assert_eq!(with(ATTRIBUTES_MAX + 1), 0);
}

#[test]
fn abbreviations_of_a_unit_stop_at_their_size() {
    // Attributes of an entry that is not used fill the table before the one that is.
    let with = |bytes: usize| {
        let mut sections = forged(&[good_unit()]);
        let table = sections.get_mut(&SectionId::DebugAbbrev).unwrap();
        let rest = bytes - table.len() - 6;
        let mut filled = vec![100, BLOCK, 1];
        filled.extend([1, 0x81, 0x00].repeat(rest / 3));
        filled.extend([0x81, 0x80].iter().take(rest % 3));
        filled.truncate(3 + rest - rest % 3);
        filled.extend([0, 0]);
        filled.append(table);
        let len = filled.len();
        *table = filled;
        (len, found(&sections, 0x15).len())
    };
    let (bytes, symbols) = with(ABBREVIATIONS_BYTES_MAX);
    assert!(bytes <= ABBREVIATIONS_BYTES_MAX && bytes > ABBREVIATIONS_BYTES_MAX - 4, "{bytes}");
    assert_eq!(symbols, 1);
    let (bytes, symbols) = with(ABBREVIATIONS_BYTES_MAX + 60);
    assert!(bytes > ABBREVIATIONS_BYTES_MAX, "{bytes}");
    assert_eq!(symbols, 0);
}

#[test]
fn units_stop_at_their_number() {
    let of = |count: usize| {
        let mut units = vec![unit(0, &entry(1, &[0x200, 0x100])); count - 1];
        units.push(good_unit());
        look_up(&forged(&units), &[0x15], 1 << 24)
    };
    let (done, symbols) = of(UNITS_MAX);
    assert_eq!((done, symbols[0].len()), (Ok(()), 1));
    assert_eq!(of(UNITS_MAX + 1), (Err(Trouble::Exhausted), vec![Vec::new()]));
}

/// A line program of version 4 with so many bytes of file names and of opcodes that set a row for 0x10 to 0x20.
fn line_program(header_bytes: usize, bytes: usize) -> Vec<u8> {
    // Lengths of opcodes, no folders, one file of any length.
    let mut header = vec![1, 1, 1, 0, 1, 4, 0, 1, 1, 0];
    header.resize(header_bytes - 5, b'a');
    header.extend([0, 0, 0, 0, 0]);
    let mut program = [&[0, 5, 2][..], &0x10_u32.to_le_bytes(), &[3, 6, 1, 2, 0x10, 0, 1, 1]].concat();
    program.resize(bytes - 6 - header.len(), 1);
    let mut all = (bytes as u32).to_le_bytes().to_vec();
    all.extend([4, 0]);
    all.extend((header.len() as u32).to_le_bytes());
    all.extend(header);
    all.extend(program);
    all
}

fn with_lines(lines: Vec<u8>) -> Sections {
    let mut sections = forged(&[unit(0, &[entry(7, &[0x10, 0x100, 0]), function_f()].concat())]);
    sections.insert(SectionId::DebugLine, lines);
    sections
}

#[test]
fn a_line_program_stops_at_its_size() {
    let line = |header_bytes, bytes| {
        let (done, symbols) = look_up(&with_lines(line_program(header_bytes, bytes)), &[0x15], 1 << 26);
        assert_eq!((done, symbols[0].len()), (Ok(()), 1));
        symbols[0][0].line
    };
    assert_eq!(line(100, 1_000), Some(7));
    assert_eq!(line(LINES_HEADER_BYTES_MAX, LINES_BYTES_MAX), Some(7));
    assert_eq!(line(LINES_HEADER_BYTES_MAX + 1, LINES_BYTES_MAX), None);
    assert_eq!(line(100, LINES_BYTES_MAX + 1), None);
}

#[test]
fn units_that_share_what_is_long_are_given_up() {
    // Each would run the same line program; 1,000 of them are 30 KB.
    let lines = line_program(100, 1 << 20);
    let shares = unit(0, &entry(7, &[0x14, 0x100, 0]));
    let mut sections = forged(&vec![shares; 1_000]);
    // The row ends before the place, so that every unit is asked.
    sections.insert(SectionId::DebugLine, lines);
    assert_eq!(look_up(&sections, &[0x30], 1 << 24).0, Err(Trouble::Exhausted));
    // The same with a list of ranges: none of its million has the place.
    let mut sections = forged(&vec![unit(0, &entry(8, &[0])); 1_000]);
    sections.insert(SectionId::DebugRanges, [1, 0, 0, 0, 2, 0, 0, 0].repeat(1 << 20));
    assert_eq!(look_up(&sections, &[0x30], 1 << 24).0, Err(Trouble::Exhausted));
    // And with a table of abbreviations that overlaps with the next one.
    let units: Vec<_> = (0..1_000).map(|table| unit(table, &entry(1, &[0x200, 0x100]))).collect();
    let mut sections = forged(&units);
    let table = sections.get_mut(&SectionId::DebugAbbrev).unwrap();
    *table = [abbreviation(1, UNIT, &[LOW, HIGH]), abbreviation(2, BLOCK, &[FLAG].repeat(100_000))].concat();
    let (done, symbols) = look_up(&sections, &[0x30], 1 << 24);
    assert_eq!((done, symbols), (Ok(()), vec![Vec::new()]), "each reads up to the next table only");
}

#[test]
fn strings_are_cut_and_paid_for() {
    let name = "f".repeat(1 << 20);
    let named = [&[5][..], name.as_bytes(), &[0], &0x10_u32.to_le_bytes(), &0x10_u32.to_le_bytes()].concat();
    let sections = forged(&[unit(0, &[entry(1, &[0x10, 0x100]), named].concat())]);
    let (done, symbols) = look_up(&sections, &[0x15], STEPS);
    assert_eq!(done, Ok(()));
    assert!(symbols[0][0].function.as_ref().unwrap().len() < 1_000);
    assert_eq!(look_up(&sections, &[0x15], 1 << 16).0, Err(Trouble::Exhausted));
    // So is the search for an end that is not there: here in a section of names, and in the entries themselves.
    let endless = |entries: &[u8], id| {
        let mut sections = forged(&[unit(0, entries)]);
        let table = sections.get_mut(&SectionId::DebugAbbrev).unwrap();
        table.pop();
        table.extend([abbreviation(9, FUNCTION, &[STRING, LOW, HIGH]), vec![0]].concat());
        sections.entry(id).or_default().extend([b'f'].repeat(1 << 20));
        [1 << 22, 1 << 16].map(|steps| look_up(&sections, &[0x15], steps).0)
    };
    let unit_with = |entry: Vec<u8>| [self::entry(1, &[0x10, 0x100]), entry].concat();
    let expected = [Ok(()), Err(Trouble::Exhausted)];
    assert_eq!(endless(&unit_with(entry(9, &[0, 0x10, 0x10])), SectionId::DebugStr), expected);
    assert_eq!(endless(&unit_with(vec![5, b'f']), SectionId::DebugInfo), expected);
}
