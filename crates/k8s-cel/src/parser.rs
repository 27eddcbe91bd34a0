//! Tokens to a tree, by recursive descent. Nesting is bounded as it is in cel-go, rule by rule, so that
//! the same expressions are too deep.

use crate::ast::{Call, Entry, Expr, Id, Item, Kind, Select};
use crate::lexer::{Token, TokenKind, lex};
use crate::macros;
use crate::source::Fault;
use crate::value::Value;

/// How deep each rule of the grammar may be nested in itself, and operations in each other.
const DEPTH_MAX: usize = 250;

/// Nodes of a tree after its macros are expanded. `optMap` writes its target out twice, so a chain of
/// them doubles with each link; what has more nodes than this would be too expensive anyway.
pub(crate) const NODES_MAX: usize = 1 << 16;

/// Words that cannot be variables or functions, though they can be fields.
const RESERVED: [&str; 17] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "namespace",
    "package",
    "return",
    "var",
    "void",
    "while",
];

/// The tree of an expression, and how many nodes it has: their ids are below that.
pub(crate) fn parse(source: &str) -> Result<(Expr, usize), Fault> {
    let mut parser = Parser {
        tokens: lex(source)?,
        at: 0,
        nodes: Nodes::default(),
        nesting: [0; 4],
    };
    let (expr, depth) = parser.expr()?;
    if parser.peek() != &TokenKind::End {
        return Err(parser.unexpected("<EOF>"));
    }
    if depth > DEPTH_MAX {
        return Err(Fault::new(0, "max recursion depth exceeded"));
    }
    let nodes = parser.nodes.count;
    if nodes > NODES_MAX {
        return Err(too_many_nodes());
    }
    Ok((expr, nodes))
}

fn too_many_nodes() -> Fault {
    Fault::new(
        0,
        format!("its macros expand to more than {NODES_MAX} operations"),
    )
}

/// Numbers nodes.
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    count: usize,
}

impl Nodes {
    fn id(&mut self) -> Id {
        self.count += 1;
        self.count - 1
    }

    pub(crate) fn make(&mut self, at: usize, kind: Kind) -> Expr {
        Expr {
            id: self.id(),
            at,
            kind,
        }
    }

    pub(crate) fn call(
        &mut self,
        at: usize,
        function: &str,
        target: Option<Expr>,
        args: Vec<Expr>,
    ) -> Expr {
        let function = function.to_owned();
        let call = Call {
            function,
            target,
            args,
        };
        self.make(at, Kind::Call(Box::new(call)))
    }

    pub(crate) fn select(&mut self, at: usize, operand: Expr, field: String, test: bool) -> Expr {
        let select = Select {
            operand,
            field,
            test,
        };
        self.make(at, Kind::Select(Box::new(select)))
    }

    /// The same tree with numbers of its own.
    pub(crate) fn copy(&mut self, expr: &Expr) -> Result<Expr, Fault> {
        let mut copy = expr.clone();
        self.renumber(&mut copy);
        if self.count > NODES_MAX {
            return Err(too_many_nodes());
        }
        Ok(copy)
    }

    fn renumber(&mut self, expr: &mut Expr) {
        expr.id = self.id();
        match &mut expr.kind {
            Kind::Literal(_) | Kind::Ident(_) => {}
            Kind::Select(select) => self.renumber(&mut select.operand),
            Kind::Call(call) => {
                let parts = call.target.iter_mut().chain(&mut call.args);
                parts.for_each(|part| self.renumber(part));
            }
            Kind::List(items) => items.iter_mut().for_each(|i| self.renumber(&mut i.value)),
            Kind::Map(entries) => {
                for entry in entries {
                    self.renumber(&mut entry.key);
                    self.renumber(&mut entry.value);
                }
            }
            Kind::Comprehension(fold) => {
                self.renumber(&mut fold.range);
                self.renumber(&mut fold.init);
                self.renumber(&mut fold.condition);
                self.renumber(&mut fold.step);
                self.renumber(&mut fold.result);
            }
        }
    }
}

/// Rules whose nesting is counted.
#[derive(Clone, Copy)]
enum Rule {
    Expr,
    Relation,
    Calc,
    Member,
}

/// A tree and how deep its operations are nested.
type Parsed = Result<(Expr, usize), Fault>;

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    nodes: Nodes,
    nesting: [usize; 4],
}

impl Parser {
    fn peek(&self) -> &TokenKind {
        &self.tokens[self.at].kind
    }

    fn peek_after(&self, ahead: usize) -> &TokenKind {
        let last = self.tokens.len() - 1;
        &self.tokens[(self.at + ahead).min(last)].kind
    }

    fn place(&self) -> usize {
        self.tokens[self.at].at
    }

    fn is(&self, sign: &str) -> bool {
        matches!(self.peek(), TokenKind::Sign(found) if *found == sign)
    }

    fn accept(&mut self, sign: &str) -> bool {
        let found = self.is(sign);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, sign: &'static str) -> Result<(), Fault> {
        if self.accept(sign) {
            return Ok(());
        }
        Err(self.unexpected(&format!("'{sign}'")))
    }

    fn unexpected(&self, expected: &str) -> Fault {
        let found = match self.peek() {
            TokenKind::End => "<EOF>".to_owned(),
            TokenKind::Sign(sign) => (*sign).to_owned(),
            TokenKind::Ident(text)
            | TokenKind::Int(text)
            | TokenKind::Uint(text)
            | TokenKind::Double(text)
            | TokenKind::Str(text) => text.clone(),
            TokenKind::Bytes(_) => "bytes".to_owned(),
        };
        let message = format!("mismatched input '{found}' expecting {expected}");
        Fault::syntax(self.place(), &message)
    }

    /// Counts one more nesting of a rule; what counts it out again restores `nesting`.
    fn enter(&mut self, rule: Rule) -> Result<(), Fault> {
        let depth = &mut self.nesting[rule as usize];
        *depth += 1;
        if *depth > DEPTH_MAX {
            let message = format!("expression recursion limit exceeded: {DEPTH_MAX}");
            return Err(Fault::new(self.place(), message));
        }
        Ok(())
    }

    fn expr(&mut self) -> Parsed {
        let before = self.nesting;
        self.enter(Rule::Expr)?;
        let (condition, mut depth) = self.logic("||")?;
        let at = self.place();
        let expr = if self.accept("?") {
            let (yes, yes_depth) = self.logic("||")?;
            self.expect(":")?;
            let (no, no_depth) = self.expr()?;
            depth = depth.max(yes_depth).max(no_depth) + 1;
            self.nodes.call(at, "_?_:_", None, vec![condition, yes, no])
        } else {
            condition
        };
        self.nesting = before;
        Ok((expr, depth))
    }

    /// A chain of `||`, or of `&&`: one call with all terms, as the order of brackets changes nothing.
    fn logic(&mut self, sign: &'static str) -> Parsed {
        let or = sign == "||";
        let (first, mut depth) = if or {
            self.logic("&&")
        } else {
            self.relation()
        }?;
        if !self.is(sign) {
            return Ok((first, depth));
        }
        let at = self.place();
        let mut terms = vec![first];
        while self.accept(sign) {
            let (term, term_depth) = if or {
                self.logic("&&")
            } else {
                self.relation()
            }?;
            depth = depth.max(term_depth);
            terms.push(term);
        }
        let function = if or { "_||_" } else { "_&&_" };
        Ok((self.nodes.call(at, function, None, terms), depth))
    }

    fn relation(&mut self) -> Parsed {
        let before = self.nesting;
        self.enter(Rule::Relation)?;
        let (mut left, mut depth) = self.calc(0)?;
        loop {
            let function = match self.peek() {
                TokenKind::Sign("<") => "_<_",
                TokenKind::Sign("<=") => "_<=_",
                TokenKind::Sign(">=") => "_>=_",
                TokenKind::Sign(">") => "_>_",
                TokenKind::Sign("==") => "_==_",
                TokenKind::Sign("!=") => "_!=_",
                TokenKind::Sign("in") => "@in",
                _ => break,
            };
            let at = self.place();
            self.at += 1;
            self.enter(Rule::Relation)?;
            let inner = self.nesting;
            self.enter(Rule::Relation)?;
            let (right, right_depth) = self.calc(0)?;
            self.nesting = inner;
            depth = depth.max(right_depth) + 1;
            left = self.nodes.call(at, function, None, vec![left, right]);
        }
        self.nesting = before;
        Ok((left, depth))
    }

    /// Sums (`level` 0) of products (`level` 1).
    fn calc(&mut self, level: u8) -> Parsed {
        let before = self.nesting;
        self.enter(Rule::Calc)?;
        let (mut left, mut depth) = self.unary()?;
        loop {
            let (function, binds) = match self.peek() {
                TokenKind::Sign("*") => ("_*_", 1),
                TokenKind::Sign("/") => ("_/_", 1),
                TokenKind::Sign("%") => ("_%_", 1),
                TokenKind::Sign("+") => ("_+_", 0),
                TokenKind::Sign("-") => ("_-_", 0),
                _ => break,
            };
            if binds < level {
                break;
            }
            let at = self.place();
            self.at += 1;
            self.enter(Rule::Calc)?;
            let inner = self.nesting;
            let (right, right_depth) = self.calc(binds + 1)?;
            self.nesting = inner;
            depth = depth.max(right_depth) + 1;
            left = self.nodes.call(at, function, None, vec![left, right]);
        }
        self.nesting = before;
        Ok((left, depth))
    }

    fn unary(&mut self) -> Parsed {
        let at = self.place();
        let (sign, function) = match self.peek() {
            TokenKind::Sign("!") => ("!", "!_"),
            TokenKind::Sign("-")
                if !matches!(self.peek_after(1), TokenKind::Int(_) | TokenKind::Double(_)) =>
            {
                ("-", "-_")
            }
            _ => return self.member(),
        };
        let mut count = 0;
        while self.accept(sign) {
            count += 1;
        }
        let (operand, depth) = self.member()?;
        if count % 2 == 0 {
            return Ok((operand, depth));
        }
        Ok((self.nodes.call(at, function, None, vec![operand]), depth))
    }

    fn member(&mut self) -> Parsed {
        let before = self.nesting;
        self.enter(Rule::Member)?;
        let (mut operand, mut depth) = self.primary()?;
        loop {
            let at = self.place();
            if self.accept(".") {
                self.enter(Rule::Member)?;
                (operand, depth) = self.selection(at, operand, depth)?;
            } else if self.accept("[") {
                self.enter(Rule::Member)?;
                let optional = self.accept("?");
                let (index, index_depth) = self.expr()?;
                self.expect("]")?;
                depth = depth.max(index_depth) + 1;
                let function = if optional { "_[?_]" } else { "_[_]" };
                operand = self.nodes.call(at, function, None, vec![operand, index]);
            } else {
                break;
            }
        }
        self.nesting = before;
        Ok((operand, depth))
    }

    /// What comes after a dot: a field, an optional one, or a call.
    fn selection(&mut self, at: usize, operand: Expr, depth: usize) -> Parsed {
        let optional = self.accept("?");
        let field_at = self.place();
        let TokenKind::Ident(name) = self.peek().clone() else {
            return Err(self.unexpected("IDENTIFIER"));
        };
        self.at += 1;
        if optional {
            let field = Kind::Literal(Value::str(name));
            let field = self.nodes.make(field_at, field);
            let select = self.nodes.call(at, "_?._", None, vec![operand, field]);
            return Ok((select, depth + 1));
        }
        let open = self.place();
        if self.accept("(") {
            let (args, args_depth) = self.args()?;
            let call = macros::receiver(&mut self.nodes, open, &name, operand, args)?;
            return Ok((call, depth.max(args_depth) + 1));
        }
        Ok((self.nodes.select(at, operand, name, false), depth + 1))
    }

    /// Arguments up to the closing bracket.
    fn args(&mut self) -> Result<(Vec<Expr>, usize), Fault> {
        let mut args = Vec::new();
        let mut depth = 0;
        if self.accept(")") {
            return Ok((args, depth));
        }
        loop {
            let (arg, arg_depth) = self.expr()?;
            depth = depth.max(arg_depth);
            args.push(arg);
            if !self.accept(",") {
                self.expect(")")?;
                return Ok((args, depth));
            }
        }
    }

    fn primary(&mut self) -> Parsed {
        let at = self.place();
        let negative = self.accept("-");
        let token = self.peek().clone();
        let literal = match token {
            TokenKind::Int(text) => int(&text, negative).ok_or("invalid int literal"),
            TokenKind::Double(text) => double(&text, negative).ok_or("invalid double literal"),
            _ if negative => return Err(self.unexpected("NUM_FLOAT, NUM_INT")),
            TokenKind::Uint(text) => uint(&text).ok_or("invalid uint literal"),
            TokenKind::Str(text) => Ok(Value::str(text)),
            TokenKind::Bytes(bytes) => Ok(Value::Bytes(bytes.into())),
            TokenKind::Sign("true") => Ok(Value::Bool(true)),
            TokenKind::Sign("false") => Ok(Value::Bool(false)),
            TokenKind::Sign("null") => Ok(Value::Null),
            TokenKind::Sign(_) | TokenKind::Ident(_) | TokenKind::End => return self.compound(),
        };
        self.at += 1;
        let literal = literal.map_err(|message| Fault::new(at, message))?;
        Ok((self.nodes.make(at, Kind::Literal(literal)), 0))
    }

    /// What is not a literal: a name, a call, brackets, a list or a map.
    fn compound(&mut self) -> Parsed {
        let at = self.place();
        if self.accept("(") {
            let inner = self.expr()?;
            self.expect(")")?;
            return Ok(inner);
        }
        if self.accept("[") {
            return self.list(at);
        }
        if self.accept("{") {
            return self.map(at);
        }
        let absolute = self.accept(".");
        let TokenKind::Ident(name) = self.peek().clone() else {
            return Err(self.unexpected(
                "{'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, BYTES, IDENTIFIER}",
            ));
        };
        self.refuse_message()?;
        self.at += 1;
        if RESERVED.contains(&name.as_str()) {
            return Err(Fault::new(at, format!("reserved identifier: {name}")));
        }
        let name = if absolute { format!(".{name}") } else { name };
        let open = self.place();
        if self.accept("(") {
            let (args, depth) = self.args()?;
            let call = macros::global(&mut self.nodes, open, &name, args)?;
            return Ok((call, depth));
        }
        Ok((self.nodes.make(at, Kind::Ident(name)), 0))
    }

    /// Messages, `a.b{c: 1}`, are not supported: nothing of Kubernetes' is made of them.
    fn refuse_message(&self) -> Result<(), Fault> {
        let mut ahead = 1;
        while self.peek_after(ahead) == &TokenKind::Sign(".")
            && matches!(self.peek_after(ahead + 1), TokenKind::Ident(_))
        {
            ahead += 2;
        }
        if self.peek_after(ahead) == &TokenKind::Sign("{") {
            return Err(Fault::new(self.place(), "messages cannot be written here"));
        }
        Ok(())
    }

    fn list(&mut self, at: usize) -> Parsed {
        let mut items = Vec::new();
        let mut depth = 0;
        while !self.accept("]") {
            let optional = self.accept("?");
            let (value, value_depth) = self.expr()?;
            depth = depth.max(value_depth);
            items.push(Item { value, optional });
            if !self.accept(",") {
                self.expect("]")?;
                break;
            }
        }
        Ok((self.nodes.make(at, Kind::List(items)), depth))
    }

    fn map(&mut self, at: usize) -> Parsed {
        let mut entries = Vec::new();
        let mut depth = 0;
        while !self.accept("}") {
            let optional = self.accept("?");
            let (key, key_depth) = self.expr()?;
            self.expect(":")?;
            let (value, value_depth) = self.expr()?;
            depth = depth.max(key_depth).max(value_depth);
            entries.push(Entry {
                key,
                value,
                optional,
            });
            if !self.accept(",") {
                self.expect("}")?;
                break;
            }
        }
        Ok((self.nodes.make(at, Kind::Map(entries)), depth))
    }
}

fn int(text: &str, negative: bool) -> Option<Value> {
    let sign = if negative { "-" } else { "" };
    let value = match text.strip_prefix("0x") {
        Some(digits) => i64::from_str_radix(&format!("{sign}{digits}"), 16),
        None => format!("{sign}{text}").parse(),
    };
    value.ok().map(Value::Int)
}

fn uint(text: &str) -> Option<Value> {
    let value = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    value.ok().map(Value::Uint)
}

fn double(text: &str, negative: bool) -> Option<Value> {
    let value: f64 = text.parse().ok()?;
    value
        .is_finite()
        .then_some(Value::Double(if negative { -value } else { value }))
}
