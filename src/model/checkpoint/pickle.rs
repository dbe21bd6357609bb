//! Interprets pickles as data: a virtual machine for protocols 2 to 5 that never calls anything.
//!
//! Tensors and plain containers become [`Value`]s; any other object becomes a [`Value::Object`]
//! with the name of the callable that would have made it.

use std::{collections::HashMap, rc::Rc};

use super::{
    CheckpointError,
    error::damaged,
    tensor::{Elem, StridedLayout},
};

/// Most steps of a pickle; PyTorch's have thousands. This also bounds the memory for values to a
/// few hundred MB at worst, besides the strings, which are no larger than the pickle.
const MAX_STEPS: usize = 4 << 20;
/// Longest name of a class with its module, in bytes.
const MAX_NAME_LEN: usize = 256;
const MAX_DIMENSIONS: usize = 8;

/// Index of a value of the pickle. Values refer to each other by index, so that no code here has to
/// recurse, however deeply they are nested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Id(usize);

#[derive(Clone, Debug)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Rc<str>),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A class or function, as `module.name`.
    Global(Rc<str>),
    Storage(Rc<Storage>),
    Tensor(TensorView),
    /// Another object, by the name of the callable that would have made it.
    Object(Rc<str>),
}

/// The values of one or more tensors, which are stored outside the pickle.
#[derive(Debug)]
pub(super) struct Storage {
    pub(super) key: Rc<str>,
    /// `None` for a storage of untyped bytes, whose tensors have their own types.
    pub(super) elem: Option<Elem>,
    /// Number of values; of bytes if `elem` is `None`.
    pub(super) len: usize,
    /// For a view of the storage that was saved: the index of the first value, and their number.
    pub(super) part: Option<(usize, usize)>,
}

#[derive(Clone, Debug)]
pub(super) struct TensorView {
    pub(super) storage: Rc<Storage>,
    pub(super) elem: Elem,
    pub(super) layout: StridedLayout,
}

/// The values of a pickle.
#[derive(Debug)]
pub(super) struct Pickle {
    values: Vec<Value>,
    /// The attributes of objects, as they were set after their making.
    states: HashMap<Id, Id>,
    pub(super) root: Id,
    /// Every storage that is mentioned, by key.
    pub(super) storages: HashMap<Rc<str>, Rc<Storage>>,
    /// Length of the pickle in bytes.
    pub(super) len: usize,
}

impl Pickle {
    /// Reads the pickle at the start of `bytes`.
    ///
    /// # Errors
    /// A damaged pickle, or one with more steps than [`MAX_STEPS`].
    pub(super) fn read(bytes: &[u8]) -> Result<Self, CheckpointError> {
        Machine {
            bytes,
            at: 0,
            steps: 0,
            values: Vec::new(),
            states: HashMap::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            storages: HashMap::new(),
        }
        .run()
    }

    pub(super) fn get(&self, id: Id) -> &Value {
        &self.values[id.0]
    }

    pub(super) fn text(&self, id: Id) -> Option<&str> {
        match self.get(id) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The value under `key` in the dict `id`.
    pub(super) fn lookup(&self, id: Id, key: &str) -> Option<Id> {
        let Value::Dict(entries) = self.get(id) else {
            return None;
        };
        // A later entry replaces an earlier one.
        entries
            .iter()
            .rev()
            .find(|(name, _)| self.text(*name) == Some(key))
            .map(|(_, value)| *value)
    }

    /// The attributes of an object: a dict, or the first of a pair of them, of which the second has
    /// those in slots.
    pub(super) fn attributes(&self, id: Id) -> Option<Id> {
        let state = *self.states.get(&id)?;
        match self.get(state) {
            Value::Dict(_) => Some(state),
            Value::Tuple(parts) => parts
                .first()
                .copied()
                .filter(|part| matches!(self.get(*part), Value::Dict(_))),
            _ => None,
        }
    }

    /// The numbers that a number, or a tuple or list of them, consists of; empty for anything else.
    pub(super) fn numbers(&self, id: Id) -> Vec<f64> {
        let number = |id: Id| match self.get(id) {
            Value::Int(value) => Some(*value as f64),
            Value::Float(value) => Some(*value),
            _ => None,
        };
        match self.get(id) {
            Value::Tuple(items) | Value::List(items) if items.len() <= MAX_DIMENSIONS => {
                let numbers: Option<Vec<f64>> = items.iter().map(|item| number(*item)).collect();
                numbers.unwrap_or_default()
            }
            _ => number(id).into_iter().collect(),
        }
    }

    /// A description of the value for error messages.
    pub(super) fn describe(&self, id: Id) -> String {
        match self.get(id) {
            Value::None => "None".into(),
            Value::Bool(_) => "a bool".into(),
            Value::Int(_) | Value::Float(_) => "a number".into(),
            Value::Text(_) => "a string".into(),
            Value::Tuple(_) => "a tuple".into(),
            Value::List(_) => "a list".into(),
            Value::Dict(_) => "a dict".into(),
            Value::Global(name) => format!("the name `{name}`"),
            Value::Storage(_) => "a storage".into(),
            Value::Tensor(_) => "a tensor".into(),
            Value::Object(name) => format!("an object made by `{name}`"),
        }
    }
}

/// The virtual machine that runs a pickle's opcodes.
struct Machine<'a> {
    bytes: &'a [u8],
    /// Position of the next opcode or argument.
    at: usize,
    steps: usize,
    values: Vec<Value>,
    states: HashMap<Id, Id>,
    stack: Vec<Id>,
    /// Heights of the stack at which MARK was executed.
    marks: Vec<usize>,
    memo: HashMap<usize, Id>,
    storages: HashMap<Rc<str>, Rc<Storage>>,
}

impl Machine<'_> {
    fn run(mut self) -> Result<Pickle, CheckpointError> {
        loop {
            self.charge(1)?;
            match self.byte()? {
                // PROTO, FRAME
                0x80 => drop(self.take(1)?),
                0x95 => drop(self.take(8)?),
                // STOP
                b'.' => {
                    let root = self.pop()?;
                    return Ok(Pickle {
                        values: self.values,
                        states: self.states,
                        root,
                        storages: self.storages,
                        len: self.at,
                    });
                }
                // MARK, POP, POP_MARK, DUP
                b'(' => self.marks.push(self.stack.len()),
                b'0' => {
                    if self.marks.last() == Some(&self.stack.len()) {
                        self.marks.pop();
                    } else {
                        self.pop()?;
                    }
                }
                b'1' => drop(self.pop_mark()?),
                b'2' => self.stack.push(self.top()?),
                // NONE, NEWTRUE, NEWFALSE
                b'N' => self.push(Value::None),
                0x88 => self.push(Value::Bool(true)),
                0x89 => self.push(Value::Bool(false)),
                // BININT, BININT1, BININT2, LONG1, LONG4, BINFLOAT
                b'J' => {
                    let value = i32::from_le_bytes(self.array()?);
                    self.push(Value::Int(value.into()));
                }
                b'K' => {
                    let value = self.byte()?;
                    self.push(Value::Int(value.into()));
                }
                b'M' => {
                    let value = u16::from_le_bytes(self.array()?);
                    self.push(Value::Int(value.into()));
                }
                0x8a => self.long::<1>()?,
                0x8b => self.long::<4>()?,
                b'G' => {
                    let value = f64::from_be_bytes(self.array()?);
                    self.push(Value::Float(value));
                }
                // SHORT_BINSTRING, BINSTRING, SHORT_BINUNICODE, BINUNICODE, BINUNICODE8
                b'U' | 0x8c => self.push_text::<1>()?,
                b'T' | b'X' => self.push_text::<4>()?,
                0x8d => self.push_text::<8>()?,
                // SHORT_BINBYTES, BINBYTES, BINBYTES8, BYTEARRAY8
                b'C' => self.push_bytes::<1>()?,
                b'B' => self.push_bytes::<4>()?,
                0x8e | 0x96 => self.push_bytes::<8>()?,
                // EMPTY_TUPLE, TUPLE1, TUPLE2, TUPLE3, TUPLE
                b')' => self.push(Value::Tuple(Vec::new())),
                0x85 => self.tuple(1)?,
                0x86 => self.tuple(2)?,
                0x87 => self.tuple(3)?,
                b't' => {
                    let items = self.pop_mark()?;
                    self.push(Value::Tuple(items));
                }
                // EMPTY_LIST, LIST, APPEND, APPENDS
                b']' => self.push(Value::List(Vec::new())),
                b'l' => {
                    let items = self.pop_mark()?;
                    self.push(Value::List(items));
                }
                b'a' => {
                    let item = self.pop()?;
                    self.append(vec![item])?;
                }
                b'e' => {
                    let items = self.pop_mark()?;
                    self.append(items)?;
                }
                // EMPTY_DICT, DICT, SETITEM, SETITEMS
                b'}' => self.push(Value::Dict(Vec::new())),
                b'd' => {
                    let items = self.pop_mark()?;
                    self.push(Value::Dict(Vec::new()));
                    self.set(&items)?;
                }
                b's' => {
                    let value = self.pop()?;
                    let key = self.pop()?;
                    self.set(&[key, value])?;
                }
                b'u' => {
                    let items = self.pop_mark()?;
                    self.set(&items)?;
                }
                // EMPTY_SET, ADDITEMS, FROZENSET
                0x8f => self.push_object("set"),
                0x90 => drop(self.pop_mark()?),
                0x91 => {
                    self.pop_mark()?;
                    self.push_object("frozenset");
                }
                // GLOBAL, STACK_GLOBAL
                b'c' => {
                    let module = self.line()?;
                    let name = self.line()?;
                    self.push_global(&module, &name)?;
                }
                0x93 => {
                    let name = self.pop()?;
                    let module = self.pop()?;
                    let (Value::Text(module), Value::Text(name)) =
                        (self.get(module), self.get(name))
                    else {
                        return Err(self.wrong("the name of a class is not a string"));
                    };
                    let (module, name) = (Rc::clone(module), Rc::clone(name));
                    self.push_global(&module, &name)?;
                }
                // REDUCE, NEWOBJ, NEWOBJ_EX, BUILD
                b'R' | 0x81 => {
                    let arguments = self.pop()?;
                    let callee = self.pop()?;
                    self.reduce(callee, arguments)?;
                }
                0x92 => {
                    let _keyword_arguments = self.pop()?;
                    let arguments = self.pop()?;
                    let callee = self.pop()?;
                    self.reduce(callee, arguments)?;
                }
                // The state of an object is kept. That of a dict is ignored: its entries have been
                // set before.
                b'b' => {
                    let state = self.pop()?;
                    let object = self.top()?;
                    if matches!(self.get(object), Value::Object(_)) {
                        self.states.insert(object, state);
                    }
                }
                // BINPERSID
                b'Q' => {
                    let id = self.pop()?;
                    self.push_persistent(id);
                }
                // BINPUT, LONG_BINPUT, MEMOIZE, BINGET, LONG_BINGET
                b'q' => {
                    let index = self.byte()?;
                    self.remember(index.into())?;
                }
                b'r' => {
                    let index = self.size::<4>()?;
                    self.remember(index)?;
                }
                0x94 => self.remember(self.memo.len())?,
                b'h' => {
                    let index = self.byte()?;
                    self.recall(index.into())?;
                }
                b'j' => {
                    let index = self.size::<4>()?;
                    self.recall(index)?;
                }
                other => {
                    return Err(self.wrong(format!(
                        "the opcode {other:#04x} is not one of protocols 2 to 5"
                    )));
                }
            }
        }
    }

    fn wrong(&self, reason: impl AsRef<str>) -> CheckpointError {
        damaged(format!(
            "its pickle is wrong at byte {}: {}",
            self.at,
            reason.as_ref()
        ))
    }

    /// Counts steps against the limit.
    fn charge(&mut self, steps: usize) -> Result<(), CheckpointError> {
        self.steps += steps;
        if self.steps > MAX_STEPS {
            return Err(self.wrong("it has more entries than any checkpoint of weights"));
        }
        Ok(())
    }

    fn take(&mut self, len: usize) -> Result<&[u8], CheckpointError> {
        match self.bytes.get(self.at..).and_then(|rest| rest.get(..len)) {
            Some(taken) => {
                self.at += len;
                Ok(taken)
            }
            None => Err(self.wrong("it ends too early")),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], CheckpointError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn byte(&mut self) -> Result<u8, CheckpointError> {
        let [byte] = self.array()?;
        Ok(byte)
    }

    /// An unsigned little-endian number of `N` bytes.
    fn size<const N: usize>(&mut self) -> Result<usize, CheckpointError> {
        let bytes: [u8; N] = self.array()?;
        let value = bytes
            .iter()
            .rev()
            .fold(0_u64, |value, byte| value << 8 | u64::from(*byte));
        Ok(usize::try_from(value).unwrap_or(usize::MAX))
    }

    /// A string that ends with a line feed.
    fn line(&mut self) -> Result<String, CheckpointError> {
        let rest = &self.bytes[self.at..];
        let len = rest
            .iter()
            .take(MAX_NAME_LEN + 1)
            .position(|&byte| byte == b'\n');
        let line = str::from_utf8(&rest[..len.unwrap_or_default()])
            .ok()
            .map(str::to_owned);
        let (Some(len), Some(line)) = (len, line) else {
            return Err(self.wrong("the end of a name is missing"));
        };
        self.at += len + 1;
        Ok(line)
    }

    fn get(&self, id: Id) -> &Value {
        &self.values[id.0]
    }

    fn push(&mut self, value: Value) {
        self.stack.push(Id(self.values.len()));
        self.values.push(value);
    }

    fn push_object(&mut self, name: &str) {
        self.push(Value::Object(name.into()));
    }

    fn push_global(&mut self, module: &str, name: &str) -> Result<(), CheckpointError> {
        if module.len() + name.len() > MAX_NAME_LEN {
            return Err(self.wrong("the name of a class is too long"));
        }
        self.push(Value::Global(format!("{module}.{name}").into()));
        Ok(())
    }

    fn push_text<const N: usize>(&mut self) -> Result<(), CheckpointError> {
        let len = self.size::<N>()?;
        let text = String::from_utf8_lossy(self.take(len)?).into();
        self.push(Value::Text(text));
        Ok(())
    }

    fn push_bytes<const N: usize>(&mut self) -> Result<(), CheckpointError> {
        let len = self.size::<N>()?;
        self.take(len)?;
        self.push_object("bytes");
        Ok(())
    }

    /// LONG1 or LONG4: a signed number whose length is given in `N` bytes.
    fn long<const N: usize>(&mut self) -> Result<(), CheckpointError> {
        let len = self.size::<N>()?;
        let bytes = self.take(len)?;
        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut padded = [if negative { 0xff } else { 0 }; 8];
        let value = match padded.get_mut(..bytes.len()) {
            Some(low) => {
                low.copy_from_slice(bytes);
                Value::Int(i64::from_le_bytes(padded))
            }
            None => Value::Object("int".into()),
        };
        self.push(value);
        Ok(())
    }

    fn top(&self) -> Result<Id, CheckpointError> {
        let floor = self.marks.last().copied().unwrap_or_default();
        match self.stack[floor..].last() {
            Some(id) => Ok(*id),
            None => Err(self.wrong("a value is missing on the stack")),
        }
    }

    fn pop(&mut self) -> Result<Id, CheckpointError> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>, CheckpointError> {
        match self.marks.pop() {
            Some(mark) => Ok(self.stack.split_off(mark)),
            None => Err(self.wrong("a mark is missing on the stack")),
        }
    }

    fn tuple(&mut self, len: usize) -> Result<(), CheckpointError> {
        let mut items = (0..len)
            .map(|_| self.pop())
            .collect::<Result<Vec<_>, _>>()?;
        items.reverse();
        self.push(Value::Tuple(items));
        Ok(())
    }

    fn append(&mut self, items: Vec<Id>) -> Result<(), CheckpointError> {
        let list = self.top()?;
        if let Value::List(list) = &mut self.values[list.0] {
            list.extend(items);
        }
        Ok(())
    }

    fn set(&mut self, items: &[Id]) -> Result<(), CheckpointError> {
        let dict = self.top()?;
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(self.wrong("a key has no value"));
        }
        if let Value::Dict(entries) = &mut self.values[dict.0] {
            entries.extend(pairs.iter().map(|[key, value]| (*key, *value)));
        }
        Ok(())
    }

    fn remember(&mut self, index: usize) -> Result<(), CheckpointError> {
        let top = self.top()?;
        self.memo.insert(index, top);
        Ok(())
    }

    fn recall(&mut self, index: usize) -> Result<(), CheckpointError> {
        match self.memo.get(&index) {
            Some(id) => {
                self.stack.push(*id);
                Ok(())
            }
            None => Err(self.wrong("it refers to a value that it has not stored")),
        }
    }

    /// The items of a tuple or list; empty for other values.
    fn items(&self, id: Id) -> &[Id] {
        match self.get(id) {
            Value::Tuple(items) | Value::List(items) => items,
            _ => &[],
        }
    }

    fn text(&self, id: Id) -> Option<&Rc<str>> {
        match self.get(id) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    fn number(&self, id: Id) -> Option<usize> {
        match self.get(id) {
            Value::Int(value) => usize::try_from(*value).ok(),
            _ => None,
        }
    }

    /// Pushes the result of `callee(*arguments)` if `callee` is one of the few supported ones, and
    /// a [`Value::Object`] otherwise.
    fn reduce(&mut self, callee: Id, arguments: Id) -> Result<(), CheckpointError> {
        let (mut callee, mut arguments) = (callee, arguments);
        if self.is_global(callee, "torch._tensor._rebuild_from_type_v2")
            && let [inner, _, inner_arguments, ..] = *self.items(arguments)
        {
            (callee, arguments) = (inner, inner_arguments);
        }
        let Value::Global(name) = self.get(callee) else {
            self.push_object("something that is not a class");
            return Ok(());
        };
        let name = Rc::clone(name);
        let value = match &*name {
            "collections.OrderedDict"
            | "collections.defaultdict"
            | "builtins.dict"
            | "__builtin__.dict" => Some(self.dict(arguments)?),
            "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2" => {
                self.tensor(arguments, None)
            }
            "torch._utils._rebuild_tensor_v3" => {
                let elem = self.items(arguments).get(6).and_then(|id| self.elem(*id));
                elem.and_then(|elem| self.tensor(arguments, Some(elem)))
            }
            "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state" => {
                let tensor = self.items(arguments).first().map(|id| self.get(*id));
                tensor
                    .filter(|value| matches!(value, Value::Tensor(_)))
                    .cloned()
            }
            _ => None,
        };
        self.push(value.unwrap_or(Value::Object(name)));
        Ok(())
    }

    fn is_global(&self, id: Id, name: &str) -> bool {
        matches!(self.get(id), Value::Global(global) if &**global == name)
    }

    /// A dict from the arguments of its constructor: nothing, or a list of pairs.
    fn dict(&mut self, arguments: Id) -> Result<Value, CheckpointError> {
        let pairs = self
            .items(arguments)
            .first()
            .map_or(&[][..], |id| self.items(*id));
        let count = pairs.len();
        let entries = pairs
            .iter()
            .filter_map(|pair| <[Id; 2]>::try_from(self.items(*pair)).ok())
            .map(|[key, value]| (key, value))
            .collect();
        self.charge(count)?;
        Ok(Value::Dict(entries))
    }

    /// A tensor from the arguments `(storage, offset, shape, strides, …)`.
    fn tensor(&self, arguments: Id, elem: Option<Elem>) -> Option<Value> {
        let [storage, offset, shape, strides, ..] = *self.items(arguments) else {
            return None;
        };
        let Value::Storage(storage) = self.get(storage) else {
            return None;
        };
        let sizes = |id: Id| -> Option<Vec<usize>> {
            let items = Some(self.items(id)).filter(|items| items.len() <= MAX_DIMENSIONS)?;
            items.iter().map(|id| self.number(*id)).collect()
        };
        let layout = StridedLayout {
            shape: sizes(shape)?,
            strides: sizes(strides)?,
            offset: self.number(offset)?,
        };
        Some(Value::Tensor(TensorView {
            storage: Rc::clone(storage),
            elem: elem.or(storage.elem)?,
            layout,
        }))
    }

    /// Pushes the object with the persistent id `("storage", type, key, device, length, part)`, or
    /// `("module", class, …)` for a class and its source.
    fn push_persistent(&mut self, id: Id) {
        if let [kind, class, ..] = *self.items(id)
            && self.text(kind).is_some_and(|kind| &**kind == "module")
        {
            self.stack.push(class);
            return;
        }

        let Some(storage) = self.storage(id).map(Rc::new) else {
            self.push_object("a persistent id");
            return;
        };
        self.storages
            .insert(Rc::clone(&storage.key), Rc::clone(&storage));
        self.push(Value::Storage(storage));
    }

    /// The storage with the persistent id `id`.
    fn storage(&self, id: Id) -> Option<Storage> {
        let [kind, class, key, _, len, ref part @ ..] = *self.items(id) else {
            return None;
        };
        if self.text(kind).map(|kind| &**kind) != Some("storage") {
            return None;
        }
        let untyped = ["torch.UntypedStorage", "torch.storage.UntypedStorage"];
        let elem = if untyped.iter().any(|name| self.is_global(class, name)) {
            None
        } else {
            Some(self.elem(class)?)
        };
        let part = match part.first().map(|id| self.items(*id)) {
            Some(&[_, first, len]) => Some((self.number(first)?, self.number(len)?)),
            _ => None,
        };
        Some(Storage {
            key: Rc::clone(self.text(key)?),
            elem,
            len: self.number(len)?,
            part,
        })
    }

    /// The element type that a class of storages or a dtype stands for.
    fn elem(&self, class: Id) -> Option<Elem> {
        let Value::Global(name) = self.get(class) else {
            return None;
        };
        Some(match name.strip_prefix("torch.")? {
            "FloatStorage" | "float32" => Elem::F32,
            "DoubleStorage" | "float64" => Elem::F64,
            "HalfStorage" | "float16" => Elem::F16,
            "BFloat16Storage" | "bfloat16" => Elem::Bf16,
            "LongStorage" | "int64" => Elem::Other("int64", 8),
            "IntStorage" | "int32" => Elem::Other("int32", 4),
            "ShortStorage" | "int16" => Elem::Other("int16", 2),
            "CharStorage" | "int8" => Elem::Other("int8", 1),
            "ByteStorage" | "uint8" => Elem::Other("uint8", 1),
            "BoolStorage" | "bool" => Elem::Other("bool", 1),
            "ComplexFloatStorage" | "complex64" => Elem::Other("complex64", 8),
            "ComplexDoubleStorage" | "complex128" => Elem::Other("complex128", 16),
            "QInt8Storage" => Elem::Other("qint8", 1),
            "QUInt8Storage" => Elem::Other("quint8", 1),
            "QInt32Storage" => Elem::Other("qint32", 4),
            "uint16" => Elem::Other("uint16", 2),
            "uint32" => Elem::Other("uint32", 4),
            "uint64" => Elem::Other("uint64", 8),
            "float8_e4m3fn" | "float8_e5m2" | "float8_e4m3fnuz" | "float8_e5m2fnuz" => {
                Elem::Other("float8", 1)
            }
            _ => return None,
        })
    }
}
