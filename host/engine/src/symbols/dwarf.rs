//! What the DWARF of one core module says of a few places in its code: functions, inlined ones too, files and lines.
//!
//! It comes from whoever wrote the component and may be made to hurt, so nothing here trusts it. What bounds it:
//! - Every step is paid from a [`Work`]; units that share a table, a list or a line program pay for it each time.
//! - Entries are walked in a loop, never by recursion: how deep they are nested does not matter to our stack.
//! - Nothing is collected but what the places asked for need. The tables that gimli itself builds (abbreviations,
//!   file names) are small because what they are built from is cut to a limit first.
//!
//! A unit that is damaged is passed over. Answers are those of `addr2line`, except that nothing is taken from ranges
//! that begin at 0, where no function stands: linkers leave them behind for code that they removed.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::sync::Arc;

use gimli::{
    Abbreviation, Abbreviations, Attribute, AttributeValue, DebugAbbrev, DebugAbbrevOffset, DebugAddrBase,
    DebugInfoOffset, DebugLineOffset, DebugLocListsBase, DebugRngListsBase, DebugStrOffsetsBase, DwAt, Dwarf,
    EndianSlice, EntriesRaw, IncompleteLineProgram, LineProgramHeader, LineRows, LittleEndian, Reader as _,
    Section as _, SectionId, Unit, UnitHeader, UnitRef, UnitType, constants,
};
use keiko_core::limit::BACKTRACE_FRAMES_MAX;

use super::Symbol;
use super::name::{cut_path, function_name, join};

/// Units of one module. A large Rust program has a few thousand.
const UNITS_MAX: usize = 16_384;
/// Bytes of one unit's abbreviations. They become 25 times as large in memory; compilers write a few thousand.
const ABBREVIATIONS_BYTES_MAX: usize = 256 << 10;
/// Attributes of one entry. Compilers write about 20.
const ATTRIBUTES_MAX: usize = 128;
/// Bytes of one unit's line program.
const LINES_BYTES_MAX: usize = 4 << 20;
/// Bytes of its header, with the names of files. They may become 90 times as large in memory.
const LINES_HEADER_BYTES_MAX: usize = 256 << 10;
/// Functions inlined into each other at one place.
const INLINED_MAX: usize = 256;
/// Entries that are followed from one to the next to find a function's name.
const ORIGINS_MAX: usize = 16;
/// Bytes of a string that are looked at.
const STRING_BYTES_MAX: usize = 8 << 10;

type Slice<'a> = EndianSlice<'a, LittleEndian>;
type Value<'a> = AttributeValue<Slice<'a>>;
type Attributes<'a> = [Attribute<Slice<'a>>];
type Lines<'a> = LineRows<Slice<'a>, IncompleteLineProgram<Slice<'a>>>;

/// Why a reading goes no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// There is more to read than anyone pays for.
    Exhausted,
    /// It is not what it should be.
    Damaged,
}

impl From<gimli::Error> for Trouble {
    fn from(_: gimli::Error) -> Trouble {
        Trouble::Damaged
    }
}

type Result<T> = std::result::Result<T, Trouble>;

/// What may still be spent, in steps of up to ten nanoseconds each.
#[derive(Debug)]
pub(super) struct Work(Cell<u64>);

impl Work {
    pub(super) fn new(steps: u64) -> Work {
        Work(Cell::new(steps))
    }

    pub(super) fn left(&self) -> u64 {
        self.0.get()
    }

    pub(super) fn charge(&self, steps: usize) -> Result<()> {
        let left = self.0.get().checked_sub(steps as u64);
        self.0.set(left.unwrap_or(0));
        left.map(drop).ok_or(Trouble::Exhausted)
    }
}

/// A place in the code of a module, and what was found of it.
#[derive(Debug)]
pub(super) struct Probe<'a> {
    /// From the beginning of the code section's contents.
    pub(super) address: u64,
    /// Innermost first; empty as long as nothing is known.
    pub(super) symbols: Vec<Symbol>,
    /// Whether the unit that is being read may have it.
    in_unit: bool,
    /// Whether the entry that is being read has it.
    hit: bool,
    /// Whether the walk is still below the last call.
    inside: bool,
    /// The function in the unit that is being read, and what is inlined in it, outermost first.
    calls: Vec<Call<'a>>,
    /// File and line by the unit's line program.
    row: Option<(u64, u32)>,
}

impl<'a> Probe<'a> {
    pub(super) fn new(address: u64) -> Probe<'a> {
        Probe {
            address,
            symbols: Vec::new(),
            in_unit: false,
            hit: false,
            inside: false,
            calls: Vec::new(),
            row: None,
        }
    }

    /// Whether the unit may have it and no function was found yet.
    fn is_outside(&self) -> bool {
        self.in_unit && self.calls.is_empty()
    }

    /// Whether the rest of the unit has nothing more to say of it.
    fn is_placed(&self) -> bool {
        !self.inside && !self.is_outside()
    }

    /// Goes into a function, or into one that is inlined there.
    fn enter(&mut self, call: Call<'a>) -> Result<()> {
        if self.calls.len() == INLINED_MAX {
            return Err(Trouble::Damaged);
        }
        self.calls.push(call);
        (self.hit, self.inside) = (false, true);
        Ok(())
    }

    fn forget_unit(&mut self) {
        *self = Probe { symbols: std::mem::take(&mut self.symbols), ..Probe::new(self.address) };
    }
}

/// A function, or a function inlined into the one before.
#[derive(Debug)]
struct Call<'a> {
    depth: isize,
    naming: Naming<'a>,
    /// Where it was called from.
    file: Option<u64>,
    line: Option<u32>,
}

impl<'a> Call<'a> {
    fn of(unit: UnitRef<'_, Slice<'a>>, attributes: &Attributes<'a>, depth: isize) -> Call<'a> {
        let file = match value(attributes, constants::DW_AT_call_file) {
            // Before version 5, there is no file 0.
            Some(AttributeValue::FileIndex(file)) if file > 0 || unit.header.version() >= 5 => Some(file),
            _ => None,
        };
        let line = value(attributes, constants::DW_AT_call_line).and_then(|line| line.udata_value());
        let line = line.and_then(|line| u32::try_from(line).ok());
        Call { depth, naming: Naming::of(attributes), file, line }
    }
}

/// What an entry says of its name: the name, or an entry that knows more.
#[derive(Debug)]
struct Naming<'a> {
    name: Option<Value<'a>>,
    origin: Option<Value<'a>>,
}

impl<'a> Naming<'a> {
    fn of(attributes: &Attributes<'a>) -> Naming<'a> {
        let first = |names: &[DwAt]| names.iter().find_map(|name| value(attributes, *name));
        let linkage =
            [constants::DW_AT_linkage_name, constants::DW_AT_MIPS_linkage_name, constants::DW_AT_name];
        let origin = [constants::DW_AT_abstract_origin, constants::DW_AT_specification];
        Naming { name: first(&linkage), origin: first(&origin) }
    }
}

/// A unit with what its root says.
struct Root<'a> {
    unit: Unit<Slice<'a>>,
    attributes: Vec<Attribute<Slice<'a>>>,
}

/// The debug information of a module, while places are looked up in it.
pub(super) struct Reading<'a, 'w> {
    dwarf: Dwarf<Slice<'a>>,
    headers: Vec<UnitHeader<Slice<'a>>>,
    /// Where tables of abbreviations begin, in order: each is read up to the next one at most.
    tables: Vec<usize>,
    /// The table that was read last, and where it begins: neighbours share it.
    table: RefCell<Option<(usize, Arc<Abbreviations>)>>,
    work: &'w Work,
}

impl<'a, 'w> Reading<'a, 'w> {
    /// Finds the units of the debug information that `section` hands out.
    pub(super) fn new(section: impl Fn(SectionId) -> &'a [u8], work: &'w Work) -> Result<Reading<'a, 'w>> {
        let dwarf = Dwarf::load(|id| Ok::<_, Trouble>(EndianSlice::new(section(id), LittleEndian)))?;
        let mut headers = Vec::new();
        let mut units = dwarf.units();
        // What follows a header that cannot be read is lost; what came before is not.
        while let Ok(Some(header)) = units.next() {
            work.charge(16)?;
            if headers.len() == UNITS_MAX {
                return Err(Trouble::Exhausted);
            }
            headers.push(header);
        }
        let mut tables: Vec<usize> = headers.iter().map(|header| header.debug_abbrev_offset().0).collect();
        tables.sort_unstable();
        tables.dedup();
        Ok(Reading { dwarf, headers, tables, table: RefCell::default(), work })
    }

    /// Looks the probes up. What was found before the work was used up stays found.
    pub(super) fn look_up(&self, probes: &mut [Probe<'a>]) -> Result<()> {
        for header in &self.headers {
            if probes.iter().all(|probe| !probe.symbols.is_empty()) {
                break;
            }
            let done = self.look_up_in(header, probes);
            probes.iter_mut().for_each(Probe::forget_unit);
            if done == Err(Trouble::Exhausted) {
                return done;
            }
        }
        Ok(())
    }

    fn look_up_in(&self, header: &UnitHeader<Slice<'a>>, probes: &mut [Probe<'a>]) -> Result<()> {
        if header.type_() != UnitType::Compilation {
            return Ok(());
        }
        let root = self.root(header)?;
        let unit = root.unit.unit_ref(&self.dwarf);
        self.each_range(unit, &root.attributes, |range| {
            let found = probes.iter_mut().filter(|probe| range.contains(&probe.address));
            found.for_each(|probe| probe.in_unit = probe.symbols.is_empty());
        })?;
        if !probes.iter().any(|probe| probe.in_unit) {
            return Ok(());
        }
        self.walk(unit, probes)?;
        // Functions without lines are still worth telling.
        let lines = forgive(self.lines(&root, probes))?;
        let header = lines.as_ref().map(LineRows::header);
        let mut found = probes.iter_mut().filter(|probe| probe.in_unit);
        found.try_for_each(|probe| self.tell(&root, header, probe))
    }

    /// Reads the root of a unit, not its lines: most units are read no further.
    fn root(&self, header: &UnitHeader<Slice<'a>>) -> Result<Root<'a>> {
        let mut unit = Unit {
            header: *header,
            abbreviations: self.abbreviations(header.debug_abbrev_offset().0)?,
            name: None,
            comp_dir: None,
            low_pc: 0,
            str_offsets_base: DebugStrOffsetsBase(0),
            addr_base: DebugAddrBase(0),
            loclists_base: DebugLocListsBase(0),
            rnglists_base: DebugRngListsBase(0),
            line_program: None,
            dwo_id: None,
        };
        let attributes = {
            let mut entries = unit.entries_raw(None)?;
            let root = entries.read_abbreviation()?.ok_or(Trouble::Damaged)?;
            self.attributes(&mut entries, root)?
        };
        for attribute in &attributes {
            match (attribute.name(), attribute.value()) {
                (constants::DW_AT_str_offsets_base, AttributeValue::DebugStrOffsetsBase(base)) => {
                    unit.str_offsets_base = base;
                }
                (constants::DW_AT_addr_base, AttributeValue::DebugAddrBase(base)) => unit.addr_base = base,
                (constants::DW_AT_rnglists_base, AttributeValue::DebugRngListsBase(base)) => {
                    unit.rnglists_base = base;
                }
                _ => {}
            }
        }
        if let Some(low) = value(&attributes, constants::DW_AT_low_pc) {
            unit.low_pc = self.dwarf.attr_address(&unit, low)?.unwrap_or(0);
        }
        Ok(Root { unit, attributes })
    }

    fn abbreviations(&self, from: usize) -> Result<Arc<Abbreviations>> {
        if let Some((known, table)) = &*self.table.borrow()
            && *known == from
        {
            return Ok(table.clone());
        }
        let section: &[u8] = self.dwarf.debug_abbrev.reader().slice();
        let next = self.tables.partition_point(|table| *table <= from);
        let end = self.tables.get(next).map_or(section.len(), |next| section.len().min(*next));
        let bytes = section.get(from..end).ok_or(Trouble::Damaged)?;
        let bytes = &bytes[..bytes.len().min(ABBREVIATIONS_BYTES_MAX)];
        self.work.charge(16 + 4 * bytes.len())?;
        let table = DebugAbbrev::new(bytes, LittleEndian).abbreviations(DebugAbbrevOffset(0))?;
        let table = Arc::new(table);
        *self.table.borrow_mut() = Some((from, table.clone()));
        Ok(table)
    }

    fn attributes(
        &self,
        entries: &mut EntriesRaw<'_, Slice<'a>>,
        abbreviation: &Abbreviation,
    ) -> Result<Vec<Attribute<Slice<'a>>>> {
        self.work.charge(16)?;
        let mut attributes = Vec::new();
        self.paid(entries, abbreviation, |entries| {
            entries.read_attributes(abbreviation.attributes(), &mut attributes)
        })?;
        Ok(attributes)
    }

    /// Goes over the attributes of one entry, for a price by their number and their bytes.
    fn paid(
        &self,
        entries: &mut EntriesRaw<'_, Slice<'a>>,
        abbreviation: &Abbreviation,
        read: impl FnOnce(&mut EntriesRaw<'_, Slice<'a>>) -> gimli::Result<()>,
    ) -> Result<()> {
        let count = abbreviation.attributes().len();
        if count > ATTRIBUTES_MAX {
            return Err(Trouble::Damaged);
        }
        let from = entries.next_offset().0;
        let done = read(entries);
        self.work.charge(4 + count + entries.next_offset().0.saturating_sub(from) / 4)?;
        self.paid_search(done, self.dwarf.debug_info.reader())
    }

    /// Visits the ranges of an entry's code.
    fn each_range(
        &self,
        unit: UnitRef<'_, Slice<'a>>,
        attributes: &Attributes<'a>,
        mut visit: impl FnMut(Range<u64>),
    ) -> Result<()> {
        let mut visit = |range: Range<u64>| {
            if range.start != 0 && range.start < range.end {
                visit(range);
            }
        };
        if let Some(list) = value(attributes, constants::DW_AT_ranges)
            && let Some(offset) = unit.attr_ranges_offset(list)?
        {
            // Counted first: one step of the second loop may go over any number of entries that are no ranges.
            for entry in unit.raw_ranges(offset)? {
                self.work.charge(4)?;
                entry?;
            }
            for range in unit.ranges(offset)? {
                let range = range?;
                visit(range.begin..range.end);
            }
            return Ok(());
        }
        let address = |name| match value(attributes, name) {
            Some(address) => unit.attr_address(address),
            None => Ok(None),
        };
        let Some(begin) = address(constants::DW_AT_low_pc)? else { return Ok(()) };
        let end = match value(attributes, constants::DW_AT_high_pc) {
            Some(AttributeValue::Udata(bytes)) => Some(begin.saturating_add(bytes)),
            _ => address(constants::DW_AT_high_pc)?,
        };
        visit(begin..end.unwrap_or(begin));
        Ok(())
    }

    /// Walks all entries of a unit for the functions that the probes are in.
    fn walk(&self, unit: UnitRef<'_, Slice<'a>>, probes: &mut [Probe<'a>]) -> Result<()> {
        let mut entries = unit.entries_raw(None)?;
        while !entries.is_empty() {
            let depth = entries.next_depth();
            let Some(abbreviation) = entries.read_abbreviation()? else {
                self.work.charge(4)?;
                continue;
            };
            for probe in probes.iter_mut().filter(|probe| probe.inside) {
                probe.inside = probe.calls.last().is_some_and(|call| call.depth < depth);
            }
            if probes.iter().all(Probe::is_placed) {
                break;
            }
            let is_function = abbreviation.tag() == constants::DW_TAG_subprogram;
            let is_call = is_function || abbreviation.tag() == constants::DW_TAG_inlined_subroutine;
            let wanted =
                |probe: &Probe<'a>| if is_function { probe.is_outside() } else { is_call && probe.inside };
            if !probes.iter().any(wanted) {
                self.paid(&mut entries, abbreviation, |entries| {
                    entries.skip_attributes(abbreviation.attributes())
                })?;
                continue;
            }
            let attributes = self.attributes(&mut entries, abbreviation)?;
            self.each_range(unit, &attributes, |range| {
                let found = probes.iter_mut().filter(|probe| wanted(probe) && range.contains(&probe.address));
                found.for_each(|probe| probe.hit = true);
            })?;
            for probe in probes.iter_mut().filter(|probe| probe.hit) {
                probe.enter(Call::of(unit, &attributes, depth))?;
            }
        }
        Ok(())
    }

    /// Runs the line program of a unit past the probes; what it leaves has the names of the files.
    fn lines(&self, root: &Root<'a>, probes: &mut [Probe<'a>]) -> Result<Option<Lines<'a>>> {
        let list = value(&root.attributes, constants::DW_AT_stmt_list);
        let Some(AttributeValue::DebugLineRef(offset)) = list else { return Ok(None) };
        self.pay_lines(offset)?;
        let string = |name| {
            let value = value(&root.attributes, name);
            forgive(value.map(|value| self.string(&root.unit, value)).transpose())
        };
        let (folder, name) = (string(constants::DW_AT_comp_dir)?, string(constants::DW_AT_name)?);
        let address_size = root.unit.header.address_size();
        let mut rows = self.dwarf.debug_line.program(offset, address_size, folder, name)?.rows();
        // A row stands for the code up to the next row of its sequence.
        let mut last: Option<(u64, u64, u32)> = None;
        let mut is_code = false;
        while let Some((_, row)) = rows.next_row()? {
            match last {
                Some((from, file, line)) if is_code => {
                    let range = from..row.address();
                    let found = probes.iter_mut().filter(|probe| probe.in_unit && probe.row.is_none());
                    found
                        .filter(|probe| range.contains(&probe.address))
                        .for_each(|probe| probe.row = Some((file, line)));
                }
                Some(_) => {}
                None => is_code = row.address() != 0,
            }
            let line = row.line().map_or(0, |line| u32::try_from(line.get()).unwrap_or(0));
            last = (!row.end_sequence()).then(|| (row.address(), row.file_index(), line));
        }
        Ok(Some(rows))
    }

    /// Pays for a line program by its length, and refuses one whose tables would become large.
    fn pay_lines(&self, offset: DebugLineOffset) -> Result<()> {
        let mut rest = *self.dwarf.debug_line.reader();
        rest.skip(offset.0)?;
        let (bytes, format) = rest.read_initial_length()?;
        if rest.read_u16()? >= 5 {
            rest.skip(2)?;
        }
        let header_bytes = rest.read_length(format)?;
        if bytes > LINES_BYTES_MAX || header_bytes > LINES_HEADER_BYTES_MAX {
            return Err(Trouble::Damaged);
        }
        // A byte of the header may stand for a file, with room for all that can be said of one.
        self.work.charge(16 + 4 * bytes + 16 * header_bytes)
    }

    /// Puts together what was found of a probe, innermost first: a function stands where the one in it was called.
    fn tell(
        &self,
        root: &Root<'a>,
        header: Option<&LineProgramHeader<Slice<'a>>>,
        probe: &mut Probe<'a>,
    ) -> Result<()> {
        let path = |file| match header {
            Some(header) => forgive(self.path(root, header, file)),
            None => Ok(None),
        };
        let (mut file, mut line) = match probe.row {
            Some((file, line)) => (path(file)?, Some(line)),
            None => (None, None),
        };
        let mut symbols = Vec::new();
        if probe.calls.is_empty() && probe.row.is_some() {
            symbols.push(Symbol::new(None, file, line));
        } else {
            for call in probe.calls.iter().rev().take(BACKTRACE_FRAMES_MAX) {
                let function = forgive(self.name(&root.unit, &call.naming, ORIGINS_MAX))?;
                symbols.push(Symbol::new(function, file, line));
                (file, line) = (call.file.map(path).transpose()?.flatten(), call.line);
            }
        }
        probe.symbols = symbols;
        Ok(())
    }

    /// The name that an entry has or refers to.
    fn name(&self, unit: &Unit<Slice<'a>>, naming: &Naming<'a>, origins: usize) -> Result<Option<String>> {
        if let Some(name) = naming.name {
            return Ok(Some(function_name(&text(self.string(unit, name)?))));
        }
        let foreign;
        let (unit, offset) = match naming.origin {
            Some(AttributeValue::UnitRef(offset)) => (unit, offset),
            Some(AttributeValue::DebugInfoRef(offset)) => {
                foreign = self.unit_with(offset)?;
                let within = offset.to_unit_offset(&foreign.header).ok_or(Trouble::Damaged)?;
                (&foreign, within)
            }
            _ => return Ok(None),
        };
        if origins == 0 {
            return Ok(None);
        }
        let mut entries = unit.entries_raw(Some(offset))?;
        let abbreviation = entries.read_abbreviation()?.ok_or(Trouble::Damaged)?;
        let attributes = self.attributes(&mut entries, abbreviation)?;
        self.name(unit, &Naming::of(&attributes), origins - 1)
    }

    fn unit_with(&self, offset: DebugInfoOffset) -> Result<Unit<Slice<'a>>> {
        let begins_before = |header: &UnitHeader<Slice<'a>>| header.debug_info_offset() <= Some(offset);
        let after = self.headers.partition_point(begins_before);
        let header = after.checked_sub(1).and_then(|at| self.headers.get(at)).ok_or(Trouble::Damaged)?;
        Ok(self.root(header)?.unit)
    }

    fn path(
        &self,
        root: &Root<'a>,
        header: &LineProgramHeader<Slice<'a>>,
        file: u64,
    ) -> Result<Option<String>> {
        let Some(file) = header.file(file) else { return Ok(None) };
        let folder = value(&root.attributes, constants::DW_AT_comp_dir);
        let below = if file.directory_index() == 0 { None } else { file.directory(header) };
        let mut path = String::new();
        for piece in [folder, below, Some(file.path_name())].into_iter().flatten() {
            join(&mut path, &text(self.string(&root.unit, piece)?));
        }
        Ok(Some(cut_path(path)))
    }

    /// A string, for a price by its length: its end is searched for.
    fn string(&self, unit: &Unit<Slice<'a>>, value: Value<'a>) -> Result<Slice<'a>> {
        let (strings, line_strings) = (self.dwarf.debug_str.reader(), self.dwarf.debug_line_str.reader());
        let longer = if strings.len() > line_strings.len() { strings } else { line_strings };
        let string = self.paid_search(self.dwarf.attr_string(unit, value), longer)?;
        self.work.charge(1 + string.len() / 4)?;
        Ok(string)
    }

    /// Pays for the search of an end that is not there, which went through a section to its last byte.
    fn paid_search<T>(&self, found: gimli::Result<T>, section: &Slice<'a>) -> Result<T> {
        if let Err(gimli::Error::UnexpectedEof(_)) = found {
            self.work.charge(section.len() / 4)?;
        }
        Ok(found?)
    }
}

fn value<'a>(attributes: &Attributes<'a>, name: DwAt) -> Option<Value<'a>> {
    attributes.iter().find(|attribute| attribute.name() == name).map(Attribute::value)
}

/// The beginning of a string.
fn text(string: Slice<'_>) -> Cow<'_, str> {
    String::from_utf8_lossy(&string.slice()[..string.len().min(STRING_BYTES_MAX)])
}

/// Goes on without what is damaged.
fn forgive<T>(found: Result<Option<T>>) -> Result<Option<T>> {
    match found {
        Err(Trouble::Damaged) => Ok(None),
        found => found,
    }
}

#[cfg(test)]
mod tests;
